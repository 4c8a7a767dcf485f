"""Inputs, rows and outputs of bulk scoring, without Ray."""

import gzip
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import encoded, npy, png
from PIL import Image
from pyarrow import fs
from typer.testing import CliRunner

from model import Artifact, load_artifact
from model.input_spec import FASHION_MNIST
from service.bulk.__main__ import app
from service.bulk.inputs import array_files, image_files, parquet, source
from service.bulk.inputs.discovery import open_source
from service.bulk.inputs.image_files import FileShard
from service.bulk.inputs.parquet import find_duplicate
from service.bulk.inputs.source import IMAGES, InputError, Source
from service.bulk.output import CHECKPOINT, PARTS, Output, OutputError
from service.bulk.reading import _read_ahead
from service.bulk.report import page
from service.bulk.scoring import Scorer
from service.bulk.summary import MEASURES, QUANTILES, summarize_output
from service.inference.decoding import decode_all
from service.inference.limits import ImageLimits
from service.inference.preparation import Input
from service.schemas.parameters import Parameters

NONE = pa.array([], pa.string())
RNG = np.random.default_rng(0)
PIXELS_BHW = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8)


def opened(where: Path | str, **options) -> Source:
    return open_source(
        str(where), **({"image": "image", "identifier": None, "max_bytes": 10_000, "spec": FASHION_MNIST} | options)
    )


def read(source: Source, ids: pa.Array = NONE, *, include: bool = False) -> list[dict]:
    tables = [table for shard in source.shards for table in shard.read(ids, include=include)]
    assert all(table.schema == IMAGES for table in tables)
    return pa.concat_tables(tables, promote_options="none").to_pylist() if tables else []


def test_files_of_another_filesystem_are_read_as_local_ones(folder):
    (folder / "large.png").write_bytes(bytes(10_001))
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*"))] + ["gone.png"]
    sizes = [100] * len(names)
    local = FileShard(fs.LocalFileSystem(), str(folder), names, sizes, 10_000)
    other = FileShard(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "", names, sizes, 10_000)
    (one,), (another,) = (list(shard.read(NONE, include=False)) for shard in (local, other))
    assert one.drop_columns("error").equals(another.drop_columns("error"))
    kinds = [
        [error and error.partition(":")[0] for error in table.column("error").to_pylist()] for table in (one, another)
    ]
    assert kinds[0] == kinds[1] == ["image-too-large", *[None] * 6, "unreadable-file"]


def test_tables_read_ahead_keep_their_order():
    tables = [pa.table({"x": [number]}) for number in range(5)]
    assert list(_read_ahead(iter(tables))) == tables
    assert list(_read_ahead(iter(()))) == []

    def broken() -> Iterator[pa.Table]:
        yield tables[0]
        raise InputError("it ends")

    ahead = _read_ahead(broken())
    assert next(ahead) == tables[0]
    with pytest.raises(InputError, match="it ends"):
        next(ahead)


def idx(pixels_BHW: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *pixels_BHW.shape) + pixels_BHW.tobytes()


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "in"
    for b, pixels in enumerate(PIXELS_BHW[:6]):
        path = root / f"sub{b % 2}" / f"{b}.{('png', 'PNG')[b % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return root


def test_a_folder_is_read_by_names_below_it(folder):
    (folder / "labels.csv").write_text("x")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "7.png").write_bytes(b"x")
    source = opened(folder)
    assert (source.kind, source.encoded, source.count, source.skipped) == ("files", True, 6, 1)
    rows = read(source)
    assert [row["id"] for row in rows] == [f"sub{b % 2}/{b}.{('png', 'PNG')[b % 2]}" for b in (0, 2, 4, 1, 3, 5)]
    assert [row["image"] for row in rows] == [png(PIXELS_BHW[b]) for b in (0, 2, 4, 1, 3, 5)]
    assert opened(folder.as_uri()).identity == source.identity


def test_a_pattern_is_read_by_names_below_its_first_part(folder):
    source = opened(f"{folder}/sub*/*.png")
    assert [row["id"] for row in read(source)] == ["sub0/0.png", "sub0/2.png", "sub0/4.png"]
    (single,) = read(opened(folder / "sub0" / "2.png"))
    assert single == {"id": "2.png", "image": png(PIXELS_BHW[2]), "error": None}


def test_large_or_missing_file_is_a_row_with_error(folder):
    (folder / "large.png").write_bytes(bytes(10_001))
    source = opened(folder)
    (folder / "sub0" / "0.png").unlink()
    errors = {row["id"]: row["error"] for row in read(source)}
    assert errors["large.png"] == "image-too-large: the file has 10001 bytes, more than 10000"
    assert errors["sub0/0.png"].startswith("unreadable-file: ")
    assert sum(error is None for error in errors.values()) == 5


def cut_into_small_parts(monkeypatch) -> None:
    for module in (source, parquet):
        monkeypatch.setattr(module, "SHARD", 8)
    for module in (image_files, array_files, parquet):
        monkeypatch.setattr(module, "AT_ONCE", 3)


@pytest.mark.parametrize("kind", ["npy", "idx", "idx.gz"])
def test_arrays_are_read_by_position(tmp_path, kind, monkeypatch):
    cut_into_small_parts(monkeypatch)
    data = {"npy": npy(PIXELS_BHW), "idx": idx(PIXELS_BHW), "idx.gz": gzip.compress(idx(PIXELS_BHW))}[kind]
    path = tmp_path / f"images.{kind}"
    path.write_bytes(data)
    source = opened(path)
    assert (source.encoded, source.count, len(source.shards)) == (False, 30, 1 if kind == "idx.gz" else 4)
    rows = read(source)
    assert [row["id"] for row in rows] == [str(b) for b in range(30)]
    assert b"".join(row["image"] for row in rows) == PIXELS_BHW.tobytes()
    ids = pa.array(["4", "29"])
    assert [row["id"] for row in read(source, ids, include=True)] == ["4", "29"]
    assert [row["id"] for row in read(source, ids)] == [str(b) for b in range(30) if b not in {4, 29}]


@pytest.mark.parametrize("count", [1, 50, 51, 101, 499, 1234])
def test_parts_are_alike_so_that_no_worker_waits_for_another(tmp_path, count, monkeypatch):
    monkeypatch.setattr(source, "SHARD", 50)
    monkeypatch.setattr(source, "_MAX_SHARDS", 10)
    (tmp_path / "x.npy").write_bytes(npy(np.zeros((count, 28, 28), np.uint8)))
    sizes = [shard.count for shard in opened(tmp_path / "x.npy").shards]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) < len(sizes) <= 10
    assert max(sizes) <= max(50, -(-count // 10))


COLUMNS = {
    "bytes": [png(pixels) for pixels in PIXELS_BHW],
    "bytes and path": [{"bytes": png(pixels), "path": "x"} for pixels in PIXELS_BHW],
    "rows": PIXELS_BHW.tolist(),
    "flat": PIXELS_BHW.reshape(-1, 784).tolist(),
    "unit": (PIXELS_BHW.reshape(-1, 784) / 255).tolist(),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("key", [None, "key"])
def test_parquet_is_read_however_it_has_its_images(tmp_path, name, key, monkeypatch):
    cut_into_small_parts(monkeypatch)
    table = pa.table({"key": [100 + b for b in range(30)], "image": COLUMNS[name]})
    for part in range(2):
        pq.write_table(table.slice(15 * part, 15), tmp_path / f"{part}.parquet", row_group_size=4)
    source = opened(tmp_path, identifier=key)
    assert (source.count, len(source.shards)) == (30, 4)
    rows = read(source)
    ids = [str(100 + b) for b in range(30)] if key else [f"{b // 15}.parquet#{b % 15}" for b in range(30)]
    assert [row["id"] for row in rows] == ids
    expected = [png(pixels) if source.encoded else pixels.tobytes() for pixels in PIXELS_BHW]
    assert [row["image"] for row in rows] == expected
    assert [row["id"] for row in read(source, pa.array([ids[9], ids[20]]), include=True)] == [ids[9], ids[20]]


def test_invalid_list_is_a_row_with_error(tmp_path):
    good = PIXELS_BHW[0].tolist()
    lists = [good, [[1]], None, [[256] * 28] * 28, [[-1] * 28] * 28, [good[0]] * 27, [[None] * 28] * 28, good]
    pq.write_table(pa.table({"id": [str(b) for b in range(8)], "image": lists}), tmp_path / "x.parquet")
    rows = read(opened(tmp_path))
    assert [row["error"] is None for row in rows] == [True] + [False] * 6 + [True]
    assert all(row["error"].startswith("invalid-image: ") for row in rows[1:-1])
    assert rows[0]["image"] == rows[-1]["image"] == PIXELS_BHW[0].tobytes()


def test_a_parquet_file_with_a_broken_page_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": COLUMNS["bytes"]}), path, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    data[page : page + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.parquet: can't be read from row 0 on"):
        read(opened(path))


def refusal(where: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        opened(where, **options)
    return str(caught.value)


def test_what_can_not_be_scored_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal(tmp_path / "empty")
    assert "there is no such file" in refusal(tmp_path / "nothing")
    assert "no file matches it" in refusal(tmp_path / "*.webp")
    assert "Unrecognized filesystem" in refusal("ftp://host/x")
    (tmp_path / "float.npy").write_bytes(npy(np.zeros((2, 28, 28))))
    assert "must have uint8 images" in refusal(tmp_path / "float.npy")
    (tmp_path / "cut.npy").write_bytes(npy(PIXELS_BHW)[:-1])
    assert "must have 23648 bytes for its 30 images, got 23647" in refusal(tmp_path / "cut.npy")
    (tmp_path / "none.npy").write_bytes(npy(PIXELS_BHW[:0]))
    assert "no images" in refusal(tmp_path / "none.npy")
    (tmp_path / "small.idx").write_bytes(idx(PIXELS_BHW[:, :14]))
    assert "must be an IDX file of images of 28 x 28" in refusal(tmp_path / "small.idx")
    (tmp_path / "fake.parquet").write_text("hello")
    assert "its content does not match its name" in refusal(tmp_path / "fake.parquet")
    (folder / "x.parquet").write_text("hello")
    assert "has images and .parquet files" in refusal(folder)


def test_parquet_without_what_is_needed_is_refused(tmp_path):
    def written(**columns: list) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    images = [b"1", b"2", b"3"]
    assert "no column image; there are picture" in refusal(written(picture=images))
    assert "no column key; there are image" in refusal(written(image=images), identifier="key")
    assert "must have encoded images or lists of numbers, got string" in refusal(written(image=["a", "b", "c"]))
    assert "must have strings or integers" in refusal(written(id=[0.5, 1, 2], image=images))
    assert "has 'a' more than once" in refusal(written(id=["a", "b", "a"], image=images))
    assert "has an empty value" in refusal(written(id=["a", "b", None], image=images))
    assert "no rows" in refusal(written(image=pa.array([], pa.binary())))


@pytest.mark.parametrize("count", [1, 2, 5000])
def test_a_repeated_value_is_found_wherever_it_is(tmp_path, count):
    values = [f"id{number}" for number in range(count)]
    pq.write_table(pa.table({"id": values}), tmp_path / "0.parquet")
    local, paths = fs.LocalFileSystem(), [str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")]
    pq.write_table(pa.table({"id": ["other"]}), tmp_path / "1.parquet")
    assert find_duplicate(local, paths, "id") is None
    pq.write_table(pa.table({"id": ["other", values[-1]]}), tmp_path / "1.parquet")
    assert find_duplicate(local, paths, "id") == values[-1]


def test_an_input_that_changed_has_another_identity(folder):
    before = opened(folder).identity
    (folder / "sub0" / "0.png").write_bytes(png(PIXELS_BHW[9]))
    assert opened(folder).identity != before


ARTIFACT = load_artifact()


def scorer(artifact: Artifact = ARTIFACT, *, is_encoded: bool = True, **asked) -> Scorer:
    return Scorer(artifact, Parameters.gather(asked.items()), encoded=is_encoded, limits=ImageLimits(25_000))


def images(*rows: tuple[bytes | None, str | None]) -> pa.Table:
    ids = [str(number) for number in range(len(rows))]
    return pa.table([ids, *map(list, zip(*rows, strict=True))], schema=IMAGES)


def test_bad_images_are_rows_with_their_errors_in_their_places():
    good = png(PIXELS_BHW[0])
    rows = scorer(samples=10)(
        images(
            (good, None),
            (b"GIF89a", None),
            (None, "unreadable-file: x"),
            (good[:-30], None),
            (good, None),
            (png(np.zeros((200, 200), np.uint8)), None),
        )
    ).to_pylist()
    kinds = [row["error"] and row["error"].partition(":")[0] for row in rows]
    assert kinds == [
        None, "unsupported-image-format", "unreadable-file", "invalid-image", None, "image-too-large",
    ]  # fmt: skip
    assert rows[0] | {"id": "4"} == rows[4]
    shared = {"id", "error", "model", "method", "samples", "seed"}
    assert {name for name, value in rows[1].items() if value is not None} == shared
    assert rows[1]["samples"] == 10
    (unknown,) = scorer(samples="auto")(images((b"", None))).to_pylist()
    assert {name for name, value in unknown.items() if value is not None} == shared - {"samples"}


def test_rows_do_not_depend_on_their_neighbours(served):
    score = scorer(served.artifact, samples=20, is_encoded=False)
    whole = score(images(*((pixels.tobytes(), None) for pixels in served.pixels_B)))
    for chosen in ([199, 7, 30], [8]):
        some = score(images(*((served.pixels_B[b].tobytes(), None) for b in chosen)))
        assert some.drop_columns("id").equals(whole.take(chosen).drop_columns("id"))


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(str(tmp_path / "out"))


JOB = {"model": "m", "seed": 0}


def commit(output: Output, stem: str, rows: pa.Table, *, pending: bool = False) -> None:
    """Leave what Ray Data leaves of a part."""
    pq.write_table(rows, output.at(f"{PARTS}/{stem}-0.parquet"))
    pq.write_table(rows.select(["id"]), output.at(f"{CHECKPOINT}/{stem}{'.pending' if pending else ''}.parquet"))


@pytest.fixture(scope="module")
def rows(fashion) -> pa.Table:
    pixels_BHW = fashion.test.images_B[:100].numpy()
    return scorer(samples=10)(images(*((png(pixels), None) for pixels in pixels_BHW), (b"x", None)))


def test_unfinished_output_looks_empty_to_readers(output, rows):
    output.begin(JOB, resume=False)
    commit(output, "a_000000", rows.slice(0, 60))
    commit(output, "a_000001", rows.slice(60))
    assert pq.read_table(output.path).num_rows == 0
    assert sorted(output.done().to_pylist()) == sorted(rows.column("id").to_pylist())
    output.check(101)
    output.finish(summarize_output(output))
    for _ in range(2):
        assert output.is_finished
        assert pq.read_table(output.path).sort_by("id").equals(rows.sort_by("id"))
        assert not Path(output.at("_unfinished")).exists()
        output.begin(JOB, resume=True)


def test_what_a_killed_run_left_is_not_counted(output, rows):
    output.begin(JOB, resume=False)
    commit(output, "a_000000", rows.slice(0, 60))
    commit(output, "a_000001", rows.slice(60), pending=True)
    pq.write_table(rows, output.at(f"{PARTS}/b_000000-0.parquet"))
    output.discard_broken()
    assert output.done().to_pylist() == rows.column("id").to_pylist()[:60]
    assert [Path(path).name for path in output.parts()] == ["a_000000-0.parquet"]
    with pytest.raises(OutputError, match="has 60 rows for 101 images"):
        output.check(101)
    commit(output, "b_000001", rows.slice(59))
    with pytest.raises(OutputError, match="has two rows for 59"):
        output.check(102)


def test_a_run_that_ended_while_parts_were_moved_is_finished(output, rows):
    output.begin(JOB, resume=False)
    commit(output, "a_000000", rows.slice(0, 60))
    commit(output, "a_000001", rows.slice(60))
    Path(output.at(f"{PARTS}/a_000000-0.parquet")).rename(output.at("a_000000-0.parquet"))
    output.begin(JOB, resume=True)
    output.discard_broken()
    output.check(101)
    output.finish({})
    assert pq.read_table(output.path).num_rows == 101


def test_another_job_or_another_run_is_kept_out(output, tmp_path):
    output.begin(JOB, resume=False)
    with pytest.raises(OutputError, match="an unfinished run, which --resume continues"):
        output.begin(JOB, resume=False)
    with pytest.raises(OutputError, match=r"another job \(model was m, is n; seed was 0, is None\)"):
        output.begin({"model": "n"}, resume=True)
    with output.locked(), pytest.raises(OutputError, match="another run is writing"), Output(output.where).locked():
        raise AssertionError
    output.finish({})
    with pytest.raises(OutputError, match="a finished run"):
        output.begin(JOB, resume=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(OutputError, match="is not empty"):
        Output(str(tmp_path / "full")).begin(JOB, resume=True)
    with pytest.raises(OutputError, match="can't be written to"):
        Output(str(tmp_path / "full" / "x" / "out")).begin(JOB, resume=False)


def test_the_summary_is_what_the_rows_say(output, rows):
    output.begin(JOB, resume=False)
    commit(output, "a_000000", rows)
    found = summarize_output(output)
    columns = rows.to_pydict()
    assert found["rows"] == 101
    assert found["errors"] == {"unsupported-image-format": 1}
    assert found["classes"] == dict(Counter(label for label in columns["label"] if label))
    assert found["abstained"] == dict(Counter(reason for reason in columns["abstain_reason"] if reason))
    for name in MEASURES:
        values = np.array([value for value in columns[name] if value is not None])
        for level in QUANTILES:
            low, high = np.quantile(values, [max(level - 0.02, 0), min(level + 0.02, 1)])
            assert low <= found["quantiles"][name][str(level)] <= high
    entropies = {name: value for name, value in zip(columns["id"], columns["predictive_entropy"], strict=True) if value}
    expected = sorted(entropies, key=lambda name: -entropies[name])[:24]
    assert [one["id"] for one in found["least_sure"]] == expected


def scored(source: Source, score: Scorer, output: Output) -> dict:
    """Write all rows; return their summary."""
    tables = [score(table) for shard in source.shards for table in shard.read(NONE, include=False)]
    output.begin(JOB, resume=False)
    commit(output, "a_000000", pa.concat_tables(tables))
    return summarize_output(output)


def test_the_report_shows_counts_and_the_least_sure_images(output, tmp_path, fashion):
    (tmp_path / "test.npy").write_bytes(npy(fashion.test.images_B[:50].numpy()))
    source, score = opened(tmp_path / "test.npy"), scorer(samples=10, is_encoded=False)
    found = scored(source, score, output)
    html = page(source, score, output, found).decode()
    assert html.count("data:image/png;base64,") == 1 + 24
    assert all(f">{one['id']}<br>" in html for one in found["least_sure"])
    assert "50 images" in html


def test_the_report_names_an_image_that_has_gone_since(output, tmp_path, fashion):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, pixels in zip("ab", fashion.test.images_B[:2].numpy(), strict=True):
        (folder / f"{name}.png").write_bytes(png(pixels))
    source, score = opened(folder), scorer(samples=10)
    found = scored(source, score, output)
    (folder / "a.png").unlink()
    html = page(source, score, output, found).decode()
    assert html.count("data:image/png;base64,") == 1 + 1
    assert "<li>a.png<br>" in html


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("samples", "1", "samples must be 0, 2..1000 or auto"),
        ("coverage", "2", "coverage must be one of"),
        ("set-method", "best", "set_method input should be 'lac', 'aps', 'raps' or 'mondrian', got best"),
        ("method", "magic", "method input should be 'masks' or 'moments', got magic"),
        ("model", "/nowhere", "/nowhere/card.json: expected a readable file"),
        ("address", "127.0.0.1:1", "Ray can't be reached at 127.0.0.1:1"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(tmp_path, monkeypatch, option, value, said):
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # what the program sets ends with the test
    np.save(tmp_path / "images.npy", PIXELS_BHW[:2])
    done = CliRunner().invoke(app, [str(tmp_path / "images.npy"), str(tmp_path / "out"), f"--{option}", value])
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert said in line
    assert (tmp_path / "out").exists() == (option == "address")  # the cluster is reached last


def test_decoder_failure_is_a_row_with_error(monkeypatch):
    """Also where it fails on many images at once."""
    good, bad = encoded(Image.new("L", (28, 28), 90)), encoded(Image.new("L", (28, 28), 91))

    def fails(uploads, **options):
        if any(upload.content.data == bad for upload in uploads):
            raise RuntimeError("a fault of ours")
        return decode_all(uploads, **options)

    monkeypatch.setattr("service.pipeline.decode_all", fails)
    first, second, third = scorer(samples=10).prepare([good, bad, good])
    assert isinstance(first, Input)
    assert second == "internal-error: RuntimeError: a fault of ours"
    assert np.array_equal(first.pixels, third.pixels)
