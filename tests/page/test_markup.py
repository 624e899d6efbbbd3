from cai_jax.page.markup import Html, document, element, fold, join, table


def test_text_is_escaped_and_markup_is_not():
    assert element("p", "<b>&", element("i", "x")) == "<p>&lt;b&gt;&amp;<i>x</i></p>"
    assert join(["<", Html("<hr>")]) == "&lt;<hr>"


def test_attributes():
    found = element("td", class_='"><script>', data_x=1, open=True, hidden=False, title=None)
    assert found == '<td class="&quot;&gt;&lt;script&gt;" data-x="1" open></td>'


def test_table_heads_rows_and_escapes_cells():
    found = table(["model", "<n>"], [["a&b", "1"]], "cap")
    assert '<th scope="col">&lt;n&gt;</th>' in found
    assert '<th scope="row">a&amp;b</th><td>1</td>' in found
    assert found.startswith('<p class="note">cap</p><div class="scroll"')


def test_a_page_forbids_scripts_and_fetches():
    page = document("t", "p{}", fold("s", "x"))
    assert "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;" in page
    assert '<details class="fold"><summary>s</summary>x</details>' in page
    assert page.startswith("<!doctype html>\n<html")
