"""Which emoji the starter data shows, and what each one is called in five languages.

Names come from Unicode CLDR through the `emoji` package; some that read badly as the name of a thing are
replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

LANGUAGES = ("en", "zh", "ja", "es", "fr")

# Things that a picture of 64 pixels can tell apart: no flags, clock faces, signs, keycaps, gender or skin
# variants, and none that only a colour tells from another.
PICTURABLE = """
⌚⌛⌨⏰⏱☀☁☂☃☄☎☕☠⚓⚔⚖⚗⚙⚰⚱⚽⚾⛈⛏⛑⛓⛩⛪⛰⛱⛲⛴⛵⛸⛺⛽✂✈✉✏
❄❤⭐🌂🌈🌊🌋🌍🌙🌞🌡🌧🌨🌩🌪🌭🌮🌯🌰🌱🌲🌳🌴🌵🌶🌷🌸🌹🌺🌻🌼🌽🌾🌿🍀🍁🍂🍃🍄🍅
🍆🍇🍈🍉🍊🍋🍌🍍🍎🍐🍑🍒🍓🍔🍕🍖🍗🍙🍚🍛🍜🍝🍞🍟🍠🍡🍢🍣🍤🍦🍧🍨🍩🍪🍫🍬🍭🍮🍯🍰
🍱🍲🍳🍵🍶🍷🍸🍹🍺🍼🍽🍾🍿🎀🎁🎂🎃🎄🎅🎆🎇🎈🎉🎊🎍🎎🎏🎐🎒🎓🎙🎛🎞🎟🎠🎡🎢🎣🎤🎥
🎧🎨🎩🎪🎬🎭🎮🎯🎰🎱🎲🎳🎵🎷🎸🎹🎺🎻🎽🎾🎿🏀🏅🏆🏈🏍🏎🏐🏒🏓🏔🏕🏚🏛🏝🏟🏠🏢🏭🏮
🏯🏸🏹🏺🐁🐂🐄🐅🐆🐇🐈🐉🐊🐌🐍🐎🐐🐑🐒🐓🐔🐕🐖🐗🐘🐙🐚🐛🐜🐝🐞🐟🐠🐡🐢🐣🐦🐧🐨🐪
🐬🐳🐸🐹🐺🐻🐼🐽🐾🐿👀👁👂👃👄👅👑👓👔👕👖👗👘👙👜👞👟👠👡👢👣👸👹👺👻👽👾💀💄💅
💈💉💊💋💌💍💎💐💡💣💧💩💰💳💵💸💺💻💼💾💿📁📅📈📊📋📌📎📏📐📓📖📚📛📜📝📞📟📠📡
📣📦📫📮📯📰📱📷📹📺📻📼📽📿🔋🔌🔍🔑🔒🔔🔖🔥🔦🔧🔨🔩🔪🔫🔬🔭🔮🕊🕋🕌🕍🕎🕯🕵🕶🕷
🕸🕹🖊🖋🖌🖍🖥🖨🖱🖲🖼🗄🗑🗜🗝🗞🗡🗳🗺🗻🗼🗽🗿🚀🚁🚂🚅🚌🚏🚑🚒🚓🚕🚗🚛🚜🚝🚠🚢🚤
🚦🚧🚨🚪🚬🚲🚽🚿🛁🛋🛍🛎🛏🛑🛒🛕🛖🛝🛞🛟🛡🛢🛤🛩🛰🛴🛵🛶🛷🛸🛹🛺🛻🛼🤖🤡🤿🥀🥁🥃
🥄🥅🥊🥋🥌🥍🥏🥐🥑🥒🥓🥔🥕🥖🥗🥘🥙🥚🥛🥜🥝🥞🥟🥠🥡🥢🥣🥤🥥🥦🥧🥨🥩🥪🥫🥬🥭🥮🥯🥻
🥼🥽🥾🥿🦀🦁🦂🦃🦄🦅🦆🦇🦈🦉🦊🦋🦌🦍🦎🦏🦐🦑🦒🦓🦔🦕🦖🦗🦘🦙🦚🦛🦜🦝🦞🦟🦠🦡🦢🦣
🦤🦥🦦🦧🦨🦩🦪🦫🦬🦭🦴🦷🦺🦽🧀🧁🧂🧃🧄🧅🧆🧇🧈🧉🧊🧋🧠🧢🧣🧤🧥🧦🧧🧨🧩🧪🧫🧬🧭🧮
🧯🧰🧱🧲🧳🧴🧵🧶🧷🧸🧹🧺🧻🧼🧽🧾🧿🩰🩱🩲🩳🩴🩹🩺🩻🩼🪀🪁🪂🪃🪄🪅🪆🪇🪈🪉🪊🪎🪏🪐
🪑🪒🪓🪔🪕🪖🪗🪘🪙🪚🪛🪜🪝🪞🪟🪠🪡🪢🪣🪤🪥🪦🪧🪨🪩🪪🪭🪮🪰🪱🪲🪳🪴🪵🪶🪷🪸🪺🪻🪼
🪽🪾🪿🫀🫁🫈🫍🫎🫏🫐🫑🫒🫔🫕🫖🫘🫙🫚🫛🫜
"""

REPLACED_NAMES: dict[str, dict[str, str]] = {
    "⌛": {"en": "hourglass", "es": "reloj de arena"},
    "☂": {"fr": "parapluie"},
    "☃": {"zh": "雪人", "ja": "雪だるま", "es": "muñeco de nieve"},
    "☄": {"es": "cometa del espacio"},
    "⚽": {"ja": "サッカーボール"},
    "⚾": {"ja": "野球ボール", "es": "pelota de béisbol", "fr": "balle de baseball"},
    "⛑": {"ja": "救助隊のヘルメット", "zh": "救援头盔", "es": "casco de rescate"},
    "⛱": {"en": "beach umbrella", "es": "sombrilla de playa", "fr": "parasol de plage"},
    "⛸": {"zh": "冰鞋", "ja": "スケート靴"},
    "⛽": {"zh": "加油机", "ja": "給油機"},
    "⭐": {"ja": "星"},
    "🌍": {"en": "globe", "zh": "地球", "ja": "地球", "es": "globo terráqueo", "fr": "globe terrestre"},
    "🌧": {"zh": "雨云"},
    "🌨": {"zh": "雪云"},
    "🌩": {"zh": "雷云"},
    "🌮": {"zh": "墨西哥塔可"},
    "🌼": {"zh": "花朵", "ja": "花", "fr": "fleur"},
    "🌿": {"fr": "herbe"},
    "🍃": {"zh": "风中的叶子"},
    "🍇": {"fr": "grappe de raisin"},
    "🍗": {"zh": "鸡腿"},
    "🍠": {"es": "batata asada"},
    "🍡": {"fr": "brochette de dango"},
    "🍢": {"es": "brocheta de oden"},
    "🍤": {"zh": "炸虾"},
    "🍬": {"zh": "糖果"},
    "🍮": {"zh": "布丁"},
    "🍲": {"ja": "鍋料理"},
    "🍳": {"en": "fried egg", "ja": "目玉焼き", "es": "huevo frito"},
    "🍾": {"zh": "香槟酒瓶"},
    "🎈": {"fr": "ballon de baudruche"},
    "🎉": {"fr": "canon à confettis"},
    "🎎": {"ja": "ひな人形"},
    "🎏": {"fr": "banderole de carpes"},
    "🎞": {"zh": "电影胶片"},
    "🎣": {"ja": "釣り竿", "fr": "canne à pêche"},
    "🎪": {"ja": "サーカスのテント"},
    "🎭": {"en": "theatre masks", "zh": "戏剧面具", "ja": "演劇の仮面", "fr": "masques de théâtre"},
    "🎮": {"en": "game controller", "ja": "ゲームコントローラー", "fr": "manette de console"},
    "🎯": {"zh": "飞镖靶", "fr": "cible"},
    "🎱": {"en": "8 ball", "zh": "黑八台球", "ja": "ビリヤードの玉"},
    "🎲": {"fr": "dé"},
    "🎽": {"ja": "ランニングシャツ"},
    "🎾": {"en": "tennis ball", "zh": "网球", "ja": "テニスボール", "fr": "balle de tennis"},
    "🎿": {"zh": "滑雪板", "ja": "スキー板", "fr": "skis"},
    "🏀": {"fr": "ballon de basket"},
    "🏈": {"ja": "アメフトのボール", "fr": "ballon de football américain"},
    "🏐": {"fr": "ballon de volley"},
    "🏟": {"zh": "体育场"},
    "🐁": {"ja": "ネズミ"},
    "🐂": {"ja": "雄牛"},
    "🐄": {"ja": "雌牛"},
    "🐳": {"es": "ballena con chorro de agua", "fr": "baleine à jet d’eau"},
    "🐸": {"ja": "カエル"},
    "🐹": {"ja": "ハムスター"},
    "🐺": {"ja": "オオカミ"},
    "🐻": {"ja": "クマ"},
    "🐼": {"ja": "パンダ"},
    "🐾": {"es": "huellas de animal"},
    "👁": {"ja": "片方の目"},
    "👹": {"zh": "日本红鬼"},
    "👺": {"zh": "天狗"},
    "👻": {"zh": "幽灵"},
    "👕": {"ja": "Tシャツ"},
    "💅": {"zh": "指甲油", "ja": "マニキュア", "es": "esmalte de uñas"},
    "💈": {"zh": "理发店转灯", "ja": "床屋の看板"},
    "💺": {"es": "asiento"},
    "💿": {"ja": "CD", "fr": "CD"},
    "📈": {"en": "rising chart", "zh": "上升的图表", "ja": "上向きのグラフ", "es": "gráfica ascendente"},
    "📝": {"ja": "メモ"},
    "📫": {
        "en": "mailbox",
        "zh": "信箱",
        "ja": "郵便受け",
        "es": "buzón con bandera",
        "fr": "boîte aux lettres à drapeau",
    },
    "📯": {"zh": "邮政号角"},
    "🔌": {"ja": "電源プラグ", "fr": "prise électrique"},
    "🔍": {"en": "magnifying glass", "zh": "放大镜", "ja": "虫眼鏡", "es": "lupa", "fr": "loupe"},
    "🔒": {"en": "padlock", "zh": "挂锁", "ja": "南京錠", "es": "candado", "fr": "cadenas"},
    "🕊": {"zh": "鸽子"},
    "🕎": {"zh": "犹太烛台"},
    "🖊": {"zh": "圆珠笔"},
    "🗺": {"es": "mapa del mundo"},
    "🗻": {"en": "Mount Fuji", "es": "monte Fuji", "fr": "mont Fuji"},
    "🗼": {"en": "Tokyo Tower", "es": "torre de Tokio", "fr": "tour de Tokyo"},
    "🗽": {"es": "estatua de la Libertad", "fr": "statue de la Liberté"},
    "🚅": {"zh": "高速列车", "ja": "新幹線"},
    "🚝": {"zh": "单轨列车"},
    "🚧": {
        "en": "construction barrier",
        "zh": "施工路障",
        "ja": "工事用バリケード",
        "es": "valla de obras",
        "fr": "barrière de chantier",
    },
    "🚦": {"en": "traffic light", "zh": "红绿灯", "ja": "信号機", "fr": "feu tricolore"},
    "🛑": {"fr": "panneau stop"},
    "🛷": {"ja": "そり"},
    "🛺": {"fr": "tuk-tuk"},
    "🤡": {"zh": "小丑", "ja": "ピエロ", "es": "payaso", "fr": "clown"},
    "🤿": {"ja": "潜水マスク"},
    "🥄": {"zh": "勺子"},
    "🥅": {"fr": "cage de but"},
    "🥊": {"ja": "ボクシンググローブ"},
    "🥋": {"ja": "道着"},
    "🥌": {"ja": "カーリングストーン"},
    "🥍": {"fr": "crosse de lacrosse"},
    "🥛": {"zh": "一杯牛奶", "ja": "牛乳のコップ"},
    "🥕": {"ja": "ニンジン"},
    "🥚": {"zh": "鸡蛋"},
    "🥣": {"zh": "碗和勺子"},
    "🥤": {"zh": "带吸管的杯子"},
    "🥧": {"zh": "馅饼"},
    "🥟": {"ja": "餃子"},
    "🥽": {"fr": "lunettes de protection"},
    "🦁": {"ja": "ライオン", "fr": "lion"},
    "🦄": {"ja": "ユニコーン"},
    "🦊": {"ja": "キツネ"},
    "🦕": {"zh": "蜥脚类恐龙"},
    "🦖": {"fr": "tyrannosaure", "es": "tiranosaurio"},
    "🦙": {"zh": "美洲驼"},
    "🦺": {"zh": "安全背心"},
    "🧀": {"zh": "奶酪"},
    "🧬": {"ja": "DNA", "es": "ADN", "fr": "ADN"},
    "🧲": {"ja": "U字型磁石"},
    "🧵": {"zh": "线轴"},
    "🧶": {"fr": "pelote de laine"},
    "🧼": {"zh": "肥皂"},
    "🧳": {"es": "maleta", "fr": "valise"},
    "🪠": {"zh": "皮搋子"},
    "🪡": {"zh": "缝衣针"},
    "🪢": {"zh": "绳结"},
    "🪣": {"zh": "水桶"},
    "🪮": {"zh": "梳子"},
    "🪻": {"es": "jacinto"},
    "🫀": {"zh": "心脏", "fr": "cœur anatomique"},
    "🫘": {"zh": "豆子"},
    "🫙": {"zh": "罐子"},
    "🫛": {"es": "vaina de guisantes"},
    "🫜": {"es": "tubérculo comestible"},
    "🩻": {"ja": "X線写真", "zh": "X光片"},
}


@dataclass(frozen=True)
class Concept:
    """One emoji with its name in every language."""

    symbol: str  # without variation selectors
    names: dict[str, str]

    @property
    def code_points(self) -> str:
        """Lower-case hexadecimal code points joined by '-', as picture files are named."""
        return "-".join(f"{ord(character):x}" for character in self.symbol)


def import_starter_package(name: str) -> ModuleType:
    """Import a package of the `starter` extra. Raises ModuleNotFoundError that says what to install."""
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"building the starter data needs the package {name!r}: run `pip install -e '.[starter]'`"
        ) from error


def clean_name(name: str, language: str) -> str:
    """A name as people write it: no colons, and a sign of the language in place of underscores."""
    separator = {"zh": "：", "ja": "・"}.get(language, " ")
    return name.strip(":").replace("_", separator).replace("  ", " ")


@cache
def named_emoji() -> tuple[Concept, ...]:
    """Every emoji with a name in all languages, sorted by code points, without flags and skin tones."""
    emoji = import_starter_package("emoji")
    for language in LANGUAGES:
        emoji.config.load_language(language)
    concepts: list[Concept] = []
    for characters, data in emoji.EMOJI_DATA.items():
        if data["status"] != emoji.STATUS["fully_qualified"] or any(lang not in data for lang in LANGUAGES):
            continue
        if any(is_skin_tone(character) or is_flag_part(character) for character in characters):
            continue
        symbol = characters.replace("\ufe0f", "")
        names = {language: clean_name(data[language], language) for language in LANGUAGES}
        concepts.append(Concept(symbol, names | REPLACED_NAMES.get(symbol, {})))
    return tuple(sorted(concepts, key=lambda concept: [ord(character) for character in concept.symbol]))


def is_skin_tone(character: str) -> bool:
    """Whether the character only sets a skin tone."""
    return "\U0001f3fb" <= character <= "\U0001f3ff"


def is_flag_part(character: str) -> bool:
    """Whether the character is a regional indicator or a tag: what flags of places are made of."""
    return "\U0001f1e6" <= character <= "\U0001f1ff" or "\U000e0020" <= character <= "\U000e007f"


@cache
def picturable_concepts() -> tuple[Concept, ...]:
    """The named emoji of `PICTURABLE`, in its order. Raises ValueError when two share a name."""
    by_symbol = {concept.symbol: concept for concept in named_emoji()}
    concepts = tuple(by_symbol[symbol] for symbol in PICTURABLE if not symbol.isspace())
    for language in LANGUAGES:
        owners: dict[str, str] = {}
        for concept in concepts:
            name = concept.names[language]
            other = owners.setdefault(name.lower(), concept.symbol)
            if other != concept.symbol:
                raise ValueError(f"{other} and {concept.symbol} are both called {name!r} in {language}")
    return concepts
