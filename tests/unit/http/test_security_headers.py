"""Security headers, and the documentation page under its content security policy."""

import re


def test_every_answer_has_security_headers(client):
    for path in ("/", "/docs.json"):
        headers = client.get(path).headers
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert "default-src 'self'" in headers["content-security-policy"]


def test_the_documentation_page_loads_only_own_files(client):
    """All that it loads is served; the content security policy forbids everything else."""
    page = client.get("/").text
    scripts = re.findall(r'<script[^>]*src="([^"]+)"', page) + re.findall(
        r'<link[^>]*stylesheet[^>]*href="([^"]+)"', page
    )
    assert scripts
    for path in scripts:
        assert client.get(path.removeprefix(".")).status_code == 200
    assert "docs.json" in client.get("/static_content/swagger-initializer.js").text
