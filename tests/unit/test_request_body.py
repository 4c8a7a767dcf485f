import base64
import io
import json

import numpy as np
import pytest
from files import npy, png
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.input_spec import FASHION_MNIST
from service.http.request_body import FILES, FORM, JSON, NPY, ParsedBody, read_many, read_one
from service.schemas.problems import Problem
from service.settings import Settings

PIXELS_BHW = np.random.default_rng(111).integers(0, 256, (3, 28, 28), dtype=np.uint8)
LIMITS = Settings(max_images=5)
BOUNDARY = "a-b-c"
FORM_TYPE = f"{FORM}; boundary={BOUNDARY}"


def form(*parts: tuple[str, bytes, bytes], end: bytes = b"--") -> bytes:
    """Parts are (name, other headers, content)."""
    start = BOUNDARY.encode()
    body = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (start, name.encode(), rest, data)
        for name, rest, data in parts
    )
    return body + f"--{BOUNDARY}".encode() + end + b"\r\n"


def file(name: str, data: bytes) -> tuple[str, bytes, bytes]:
    return name, b'; filename="x.png"\r\nContent-Type: image/png', data


def one(content_type: str, body: bytes) -> ParsedBody:
    return read_one(content_type, body, LIMITS, FASHION_MNIST)


def many(content_type: str, body: bytes) -> ParsedBody:
    return read_many(content_type, body, LIMITS, FASHION_MNIST)


def refused(read, content_type: str, body: bytes) -> Problem:
    with pytest.raises(Problem) as found:
        read(content_type, body)
    return found.value


def test_json_carries_array_or_base64():
    encoded = base64.b64encode(b"\x89PNG").decode()
    assert one(JSON, b'{"image": [1, 2]}').images == [[1, 2]]
    for text in (encoded, f"data:image/png;base64,{encoded}", f"{encoded[:3]}\n{encoded[3:]}"):
        found = one("application/json; charset=utf-8", json.dumps({"image": text, "samples": 10}).encode())
        assert (found.images, list(found.fields)) == ([b"\x89PNG"], [("samples", 10)])


def test_a_form_carries_files_and_fields_in_order():
    body = form(file("image", b"1\r\n2"), ("samples", b"", b"10"), ("seed", b"", b"3"))
    found = one(FORM_TYPE, body)
    assert (found.images, list(found.fields)) == ([b"1\r\n2"], [("samples", "10"), ("seed", "3")])
    several = many(FORM_TYPE, form(file("images", b"1"), file("image", b""), file("images", b"3")))
    assert several.images == [b"1", b"", b"3"]


@pytest.mark.parametrize("content_type", [*FILES, "", "application/x-www-form-urlencoded", "IMAGE/PNG; q=1"])
def test_any_other_body_is_a_file(content_type):
    assert one(content_type, b"x").images == many(content_type, b"x").images == [b"x"]
    assert refused(one, content_type, b"").kind == refused(many, content_type, b"").kind == "invalid-parameter"


def test_json_list_keeps_invalid_images_in_place():
    for body in (b'["eA==", [1], 5, "?"]', b'{"images": ["eA==", [1], 5, "?"]}'):
        text, array, number, broken = many(JSON, body).images
        assert (text, array) == (b"x", [1])
        assert number.detail == "image must be base64 text or an array, got int"
        assert broken.detail.startswith("image is not base64")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_npy_body_is_its_images(version):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, PIXELS_BHW, version=version)
    assert np.array_equal(many(NPY, buffer.getvalue()).images, PIXELS_BHW)
    assert np.array_equal(one(NPY, npy(PIXELS_BHW[0])).images, PIXELS_BHW[:1])


@pytest.mark.parametrize(
    ("array", "status"),
    [
        (PIXELS_BHW.astype(float), 422), (PIXELS_BHW[:, :20], 422), (PIXELS_BHW[None], 422), (PIXELS_BHW[:0], 422),
        (np.asfortranarray(PIXELS_BHW), 422), (np.array([{}]), 422), (np.array(["a"]), 422), (np.uint8(1), 422),
    ],
)  # fmt: skip
def test_other_arrays_are_refused(array, status):
    assert refused(many, NPY, npy(array)).status == status


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x93NUMPY", npy(PIXELS_BHW)[:-1], npy(PIXELS_BHW) + b"x", b"PK\x03\x04" + bytes(99), b"\x80\x04K\x01.",
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 28, 28)}"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 28, 28)}"),
        header("__import__('os').system('true')"), header("(" * 900), header("{" + "9" * 900 + "}"),
        b"\x93NUMPY\x03\x00" + bytes(99), b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_invalid_npy_is_refused_before_allocation(body):
    problem = refused(many, NPY, body)
    assert problem.status in {400, 422}
    assert len(problem.detail) < 300


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "malformed-body"),
        (b"{", 400, "malformed-body"),
        (b'{"image": NaN}', 400, "malformed-body"),
        (b"\xff\xfe", 400, "malformed-body"),
        (b"[" * 100_000, 400, "malformed-body"),
        (b"[]", 422, "invalid-body"),
        (b"null", 422, "invalid-body"),
        (b"{}", 422, "invalid-parameter"),
        (b'{"image": 5}', 422, "invalid-parameter"),
        (b'{"image": null}', 422, "invalid-parameter"),
        (b'{"image": "not base64!"}', 422, "invalid-parameter"),
        ('{"image": "é"}'.encode(), 422, "invalid-parameter"),
    ],
)
def test_malformed_json_bodies_are_refused(body, status, kind):
    problem = refused(one, JSON, body)
    assert (problem.status, problem.kind) == (status, kind)


def test_json_may_be_nested_as_deep_as_is_allowed():
    deep = Settings(max_json_depth=3)
    assert read_many(JSON, b"[[[1]]]", deep, FASHION_MNIST).images == [[[1]]]
    assert read_many(JSON, b'{"images": [[1]]}', deep, FASHION_MNIST).images == [[1]]
    for body in (b"[[[[1]]]]", b'{"images": [[[1]]]}', b'{"a": {"b": {"c": {}}}}'):
        with pytest.raises(Problem, match="nested deeper than 3"):
            read_many(JSON, body, deep, FASHION_MNIST)


@pytest.mark.parametrize("body", [b"null", b"5", b"[]", b"{}", b'{"images": 5}', b'{"images": []}', b'{"image": [1]}'])
def test_json_without_a_list_of_images_is_refused(body):
    assert refused(many, JSON, body).status == 422


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, form(file("image", b"x"))),
        (f"{FORM}; boundary=", form(file("image", b"x"))),
        (f"{FORM}; boundary={'x' * 300}", form(file("image", b"x"))),
        (f"{FORM}; boundary=other", form(file("image", b"x"))),
        (FORM_TYPE, b""),
        (FORM_TYPE, form(file("image", b"x"))[:-9]),
        (FORM_TYPE, form(file("image", b"x"), end=b"")),
        (FORM_TYPE, form(*(file(f"f{n}", b"x") for n in range(10_000)))),
        (FORM_TYPE, form(*((f"f{n}", b"", b"x") for n in range(10_000)))),
        (FORM_TYPE, form(*(file("images", b"x") for _ in range(6)))),
        (FORM_TYPE, form(("samples", b"", b"\xff"))),
        (FORM_TYPE, form(("image", b'; filename="x"' + b"\r\nX: y" * 100, b"x"))),
        (FORM_TYPE, form(("image", b'; filename="x"\r\nX: ' + b"y" * 10_000, b"x"))),
        (FORM_TYPE, form(file("image", b"x")).replace(b'name="image"; ', b"")),
    ],
)
def test_invalid_form_is_refused(content_type, body):
    problem = refused(many, content_type, body)
    assert (problem.status, problem.kind) == (400, "malformed-body")


def test_one_image_is_one_image():
    assert refused(one, FORM_TYPE, form(file("image", b"a"), file("image", b"b"))).detail.startswith(
        "image must be one"
    )
    assert refused(one, FORM_TYPE, form(("image", b"", b"abc"))).detail.startswith("image must be a file")
    assert refused(one, NPY, npy(PIXELS_BHW)).status == 422
    assert refused(one, FORM_TYPE, form(("seed", b"", b"1"))).detail.startswith("image is missing")


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "x" * 5000, "application/x-pickle"])
def test_other_types_are_refused(content_type):
    problem = refused(many, content_type, b"x")
    assert problem.status == 415
    assert len(problem.detail) < 400


TYPES = st.one_of(
    st.sampled_from([FORM, FORM_TYPE, JSON, NPY, *FILES]), st.text(st.characters(max_codepoint=255), max_size=40)
)
PARTS = st.tuples(
    st.sampled_from(["image", "images", "seed", ""]), st.sampled_from([b"", b'; filename="x"']), st.binary()
)
BODIES = st.one_of(st.binary(), st.lists(PARTS, max_size=4).map(lambda parts: form(*parts)), st.just(npy(PIXELS_BHW)))


@settings(max_examples=500, deadline=None)
@given(TYPES, BODIES, st.integers(0, 300), st.binary(max_size=3))
@example(FORM_TYPE, form(("image", b"\r\nContent-Transfer-Encoding: base64", b"?")), 0, b"")
def test_any_body_is_parsed_or_refused(content_type, body, cut, insertion):
    body = body[:cut] + insertion + body[cut:]
    for read in (one, many):
        status = 200
        try:
            content = read(content_type, body)
            assert content.images
        except Problem as problem:
            status = problem.status
        assert status in {200, 400, 415, 422}


PICTURE = png(PIXELS_BHW[0])


def test_part_without_filename_is_recognized_by_its_bytes():
    for more in (b"\r\nContent-Type: image/png", b"; filename*=UTF-8''x.png", b'; filename=""', b""):
        assert one(FORM_TYPE, form(("image", more, PICTURE))).images == [PICTURE]
    assert many(FORM_TYPE, form(*(("images[]", b'; filename="x"', PICTURE) for _ in range(3)))).images == [PICTURE] * 3
    typed = ("samples", b"\r\nContent-Type: text/plain; charset=utf-8", b"10")
    assert list(one(FORM_TYPE, form(file("image", PICTURE), typed)).fields) == [("samples", "10")]
    assert refused(many, FORM_TYPE, form(*(("images", b"", PICTURE) for _ in range(6)))).kind == "malformed-body"


def test_base64_has_two_alphabets_and_may_lack_its_padding():
    data = bytes(range(256)) + b"?>"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        for sent in (text, text.rstrip("="), f"data:image/png;charset=utf-8;base64,{text}", f"DATA:;BASE64,{text}"):
            assert one(JSON, json.dumps({"image": sent}).encode()).images == [data]
    assert "not base64" in refused(one, JSON, b'{"image": "data:image/png,abcd"}').detail
    assert "not base64" in refused(one, JSON, b'{"image": "abcde"}').detail


def test_a_preamble_and_an_epilogue_are_passed_over():
    body = form(file("image", b"x"))
    for whole in (b"\r\n" + body, b"This is a form.\r\n" + body, body + b"the end", b"a--a-b-c\r\n" + body):
        assert one(FORM_TYPE, whole).images == [b"x"]


def test_bytes_tell_what_an_image_of_any_type_is():
    for kind in ("image/jpg", "image/pjpeg", "image/x-png", "binary/octet-stream", "image/*", "IMAGE/PNG"):
        assert one(kind, PICTURE).images == [PICTURE]
    for kind in ("text/json", "application/problem+json", "application/vnd.api+json; charset=utf-8"):
        assert one(kind, b'{"image": [1]}').images == [[1]]


def test_json_is_utf_8_with_optional_byte_order_mark():
    text = '{"image": [1]}'
    assert one(JSON, text.encode("utf-8-sig")).images == [[1]]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"):
        assert "UTF-8" in refused(one, JSON, text.encode(encoding)).detail


@pytest.mark.parametrize(
    ("body", "is_ambiguous"),
    [
        (b'{"image": [1], "seed": 1, "seed": 2}', True),
        (b'{"image": [1], "image": [2]}', True),
        (b'{"image": [1], "a": {"b": 1, "b": 2}}', True),
        (b'{"image": [1], "se\\u0065d": 1, "seed": 2}', True),
        (b'{"image": [1], "seed": 1, "seed": 1}', False),
        (b'{"image": [1], "seed": "a:b:c", "b": ":"}', False),
        (b'{"image": [1], "a": {"seed": 1}, "b": {"seed": 2}}', False),
    ],
)
def test_a_name_that_is_there_twice_must_mean_one_thing(body, is_ambiguous):
    if is_ambiguous:
        assert "given twice" in refused(one, JSON, body).detail
    else:
        assert one(JSON, body).images == [[1]]


def test_oversized_json_is_refused_before_parsing():
    limits = Settings(max_images=2)
    for body in (b"[" + b"0," * 4000 + b"0]", b"[" + b"[]," * 2000 + b"0]", b"{" + b'"a":0,' * 2000 + b'"a":0}'):
        with pytest.raises(Problem, match="than 2 images need"):
            read_many(JSON, body, limits, FASHION_MNIST)
    assert len(read_many(JSON, json.dumps(PIXELS_BHW[:2].tolist()).encode(), limits, FASHION_MNIST).images) == 2
    with pytest.raises(Problem, match="at most 2 images, got 3"):
        read_many(JSON, json.dumps(PIXELS_BHW.tolist()).encode(), limits, FASHION_MNIST)
