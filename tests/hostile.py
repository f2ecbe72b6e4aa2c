"""Strings that a passage, a question, an answer or a name may hold, and that some medium would obey."""

HOSTILE = {
    "script": "<script>alert(1)</script> and <img src=x onerror=alert(1)>",
    "attribute": "\"' onmouseover=alert(1) x='",
    "link": "[click](javascript:alert(1)) ![](https://evil.example/pixel.png) <https://evil.example>",
    "address": "see https://evil.example/x and www.evil.example or HTTP://EVIL.example",
    "reference": "[a]: https://evil.example [a] [^1] &#x3c;script&#x3e; &lt;b&gt;",
    "markdown": "a | b\n# heading\n- item\n\n```\ncode\n``` `code` *emphasis* __strong__ ~~struck~~ \\",
    "formula": "$5 and $6 $$\\frac{ $",
    "template": "{{7*7}} ${7*7} {% x %} #{7*7} :smile:",
    "markup": "run[/b]x [red]y[/red] [link=https://evil.example]z[/link] [bold",
    "escape": "\x1b[2J\x1b[31mred\x1b]0;title\x07 \x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "c1": "\x9b2J\x9b31mred \x9d0;title\x9c \x90q\x85next",
    "controls": "over\rwritten back\b\b\b \x00 \x7f tab\tand\x0bvertical",
    "bidi": "\u202egpj.exe \u2066isolated\u2069 \u200fright\u061c",
    "unseen": "in\u200bvis\u00adible\ufeff\u2060 \u2028line\u2029paragraph",
    "surrogate": "half \ud800 a pair",
    "sheet": "=1+1\n@SUM(A1)",
}
