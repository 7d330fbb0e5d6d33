"""Caption templates: the n-th row of a table says the same in each language, in the order of `LANGUAGES`.

`{a}`, `{b}`, `{d}` are the names of things (with an article in English); `{a0}` is the name without any
article; `{de_a}`, `{de_b}` are French names after "de"; `{y_b}`, `{y_d}` are Spanish names after "y";
`{c}` is a colour (`{an_c}` with an English article). Spanish and French captions leave articles out, as
headings do: the names come without a gender.
"""

from __future__ import annotations

Row = tuple[str, str, str, str, str]
Rows = tuple[Row, ...]

COLOUR_NAMES: dict[str, Row] = {
    "red": ("red", "红色", "赤色", "rojo", "rouge"),
    "orange": ("orange", "橙色", "オレンジ色", "naranja", "orange"),
    "yellow": ("yellow", "黄色", "黄色", "amarillo", "jaune"),
    "green": ("green", "绿色", "緑色", "verde", "vert"),
    "blue": ("blue", "蓝色", "青色", "azul", "bleu"),
    "purple": ("purple", "紫色", "紫色", "morado", "violet"),
    "pink": ("pink", "粉色", "ピンク色", "rosa", "rose"),
    "brown": ("brown", "棕色", "茶色", "marrón", "marron"),
    "grey": ("grey", "灰色", "灰色", "gris", "gris"),
    "white": ("white", "白色", "白色", "blanco", "blanc"),
    "black": ("black", "黑色", "黒色", "negro", "noir"),
}

BARE: Rows = (("{a0}", "{a}", "{a}", "{a}", "{a}"),)
LABEL: Rows = (("picture: {a0}", "图片：{a}", "画像：{a}", "imagen: {a}", "image : {a}"),)
ONE: Rows = (
    ("{a}", "{a}", "{a}", "{a}", "{a}"),
    ("a picture of {a}", "一张{a}的图片", "{a}の画像", "una imagen de {a}", "une image {de_a}"),
    ("a drawing of {a}", "一幅{a}的图画", "{a}のイラスト", "un dibujo de {a}", "un dessin {de_a}"),
    ("an emoji of {a}", "{a}的表情符号", "{a}の絵文字", "un emoji de {a}", "un emoji {de_a}"),
    ("here you see {a}", "这里可以看到{a}", "ここに{a}が見えます", "aquí se ve: {a}", "on voit ici : {a}"),
)
ONE_ON_COLOUR: Rows = (
    (
        "{a} on {an_c} background",
        "{c}背景上的{a}",
        "{c}の背景に{a}",
        "{a} sobre fondo {c}",
        "{a} sur fond {c}",
    ),
    (
        "a picture of {a} on {an_c} background",
        "一张{c}背景的{a}图片",
        "{c}の背景の{a}の画像",
        "una imagen de {a} sobre fondo {c}",
        "une image {de_a} sur fond {c}",
    ),
    (
        "a drawing of {a}, the background is {c}",
        "一幅{a}的图画，背景是{c}的",
        "{a}のイラスト、背景は{c}です",
        "un dibujo de {a}, el fondo es {c}",
        "un dessin {de_a}, le fond est {c}",
    ),
)
TWO: Rows = (
    ("{a} and {b}", "{a}和{b}", "{a}と{b}", "{a} {y_b}", "{a} et {b}"),
    (
        "a picture of {a} and {b}",
        "一张有{a}和{b}的图片",
        "{a}と{b}の画像",
        "una imagen de {a} {y_b}",
        "une image avec {a} et {b}",
    ),
    ("{a} next to {b}", "{a}在{b}旁边", "{b}の隣に{a}", "{a} junto a {b}", "{a} à côté {de_b}"),
)
TWO_ON_COLOUR: Rows = (
    (
        "{a} and {b} on {an_c} background",
        "{c}背景上的{a}和{b}",
        "{c}の背景に{a}と{b}",
        "{a} {y_b} sobre fondo {c}",
        "{a} et {b} sur fond {c}",
    ),
)
THREE: Rows = (
    ("{a}, {b} and {d}", "{a}、{b}和{d}", "{a}と{b}と{d}", "{a}, {b} {y_d}", "{a}, {b} et {d}"),
    (
        "a picture with {a}, {b} and {d}",
        "一张有{a}、{b}和{d}的图片",
        "{a}と{b}と{d}が描かれた画像",
        "una imagen con {a}, {b} {y_d}",
        "une image avec {a}, {b} et {d}",
    ),
)
THREE_ON_COLOUR: Rows = (
    (
        "{a}, {b} and {d} on {an_c} background",
        "{c}背景上的{a}、{b}和{d}",
        "{c}の背景に{a}と{b}と{d}",
        "{a}, {b} {y_d} sobre fondo {c}",
        "{a}, {b} et {d} sur fond {c}",
    ),
)
# Where the first of two things is.
RELATION: dict[str, Rows] = {
    "left": (
        (
            "{a} to the left of {b}",
            "{a}在{b}的左边",
            "{b}の左に{a}",
            "{a} a la izquierda de {b}",
            "{a} à gauche {de_b}",
        ),
        (
            "to the left of {b} there is {a}",
            "{b}的左边有{a}",
            "{b}の左側に描かれた{a}",
            "a la izquierda de {b} hay {a}",
            "à gauche {de_b}, on voit {a}",
        ),
        (
            "{a} on the left and {b} on the right",
            "左边是{a}，右边是{b}",
            "左に{a}、右に{b}",
            "{a} a la izquierda y {b} a la derecha",
            "{a} à gauche et {b} à droite",
        ),
    ),
    "right": (
        (
            "{a} to the right of {b}",
            "{a}在{b}的右边",
            "{b}の右に{a}",
            "{a} a la derecha de {b}",
            "{a} à droite {de_b}",
        ),
        (
            "to the right of {b} there is {a}",
            "{b}的右边有{a}",
            "{b}の右側に描かれた{a}",
            "a la derecha de {b} hay {a}",
            "à droite {de_b}, on voit {a}",
        ),
        (
            "{a} on the right and {b} on the left",
            "右边是{a}，左边是{b}",
            "右に{a}、左に{b}",
            "{a} a la derecha y {b} a la izquierda",
            "{a} à droite et {b} à gauche",
        ),
    ),
    "above": (
        ("{a} above {b}", "{a}在{b}的上面", "{b}の上に{a}", "{a} encima de {b}", "{a} au-dessus {de_b}"),
        (
            "above {b} there is {a}",
            "{b}的上面有{a}",
            "{b}の上側に描かれた{a}",
            "encima de {b} hay {a}",
            "au-dessus {de_b}, on voit {a}",
        ),
        (
            "{a} at the top and {b} at the bottom",
            "上面是{a}，下面是{b}",
            "上に{a}、下に{b}",
            "{a} arriba y {b} abajo",
            "{a} en haut et {b} en bas",
        ),
    ),
    "below": (
        ("{a} below {b}", "{a}在{b}的下面", "{b}の下に{a}", "{a} debajo de {b}", "{a} en dessous {de_b}"),
        (
            "below {b} there is {a}",
            "{b}的下面有{a}",
            "{b}の下側に描かれた{a}",
            "debajo de {b} hay {a}",
            "en dessous {de_b}, on voit {a}",
        ),
        (
            "{a} at the bottom and {b} at the top",
            "下面是{a}，上面是{b}",
            "下に{a}、上に{b}",
            "{a} abajo y {b} arriba",
            "{a} en bas et {b} en haut",
        ),
    ),
}
# Where the third thing is, seen from the first two: appended to a relation.
THIRD: dict[str, Row] = {
    "left": (
        ", and {d} to the left of both",
        "，它们的左边是{d}",
        "、さらにその左に{d}",
        "; {d} a la izquierda de ambos",
        " ; {d} à gauche des deux",
    ),
    "right": (
        ", and {d} to the right of both",
        "，它们的右边是{d}",
        "、さらにその右に{d}",
        "; {d} a la derecha de ambos",
        " ; {d} à droite des deux",
    ),
    "above": (
        ", and {d} above them",
        "，它们的上面是{d}",
        "、さらにその上に{d}",
        "; encima, {d}",
        " ; au-dessus, {d}",
    ),
    "below": (
        ", and {d} below them",
        "，它们的下面是{d}",
        "、さらにその下に{d}",
        "; debajo, {d}",
        " ; en dessous, {d}",
    ),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

# For zero-shot classification, `{c}` is the class name there.
ZERO_SHOT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "en": ("{c}", "picture: {c}", "a picture of a {c}", "a drawing of a {c}", "an emoji of a {c}"),
    "zh": ("{c}", "图片：{c}", "一张{c}的图片", "一幅{c}的图画", "{c}的表情符号"),
    "ja": ("{c}", "画像：{c}", "{c}の画像", "{c}のイラスト", "{c}の絵文字"),
    "es": ("{c}", "imagen: {c}", "una imagen de {c}", "un dibujo de {c}", "un emoji de {c}"),
    "fr": ("{c}", "image : {c}", "une image de {c}", "un dessin de {c}", "un emoji de {c}"),
}
