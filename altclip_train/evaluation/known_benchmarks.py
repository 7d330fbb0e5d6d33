"""The benchmarks of the field, their protocols and their traps. Facts alone; see ``docs/evaluation.md``."""

from __future__ import annotations

from altclip_train.evaluation.protocols import GENERIC, KnownBenchmark, KnownFile, PromptSet, Protocol
from altclip_train.evaluation.readers.captions import AnnotationFiles
from altclip_train.evaluation.readers.prompts import Entry

DATASETS = "clip_benchmark/datasets"  # in the wheel
BUILDER = f"{DATASETS}/builder.py"
PROMPT_DIGESTS = {
    f"{DATASETS}/en_classnames.json": "73d279021a4bc88059884d01fae66c35ec33793ede8bc9ae54c46632625c4993",
    f"{DATASETS}/en_zeroshot_classification_templates.json": (
        "b78cc883ce1d6aefd304f180046ee25e778d627e099222fbcc57f01657c53c31"
    ),
    f"{DATASETS}/cn_classnames.json": "f0e04ba5319b12c197f3c622f2fe2b1407bf333ced8fd0f61225e68d933ac6e6",
    f"{DATASETS}/cn_zeroshot_classification_templates.json": (
        "f2bbb61310a968027e475fa9807111388e9a9b24ab9bd7e3ccbcdbfdeed15824"
    ),
    f"{DATASETS}/it_classnames.json": "c68e61e8614c00a92419ff7676bbd9dadb0487851c5eaaa2056c4d0d137ca9b7",
    f"{DATASETS}/it_zeroshot_classification_templates.json": (
        "85b8739d92ad1a760e9badc83c7ef91aaf2091e3713509e9096ed44dd64ebb2a"
    ),
    f"{DATASETS}/jp_classnames.json": "a08fbd6414c43298a3349cf0b5210eb29e3a39e3fee09d8b56d03c5ff4448013",
    f"{DATASETS}/jp_zeroshot_classification_templates.json": (
        "8d5d3547d1b24556365f76d851dfd428cc15bf5ad393bc0491ee80c8a2f936d4"
    ),
    f"{DATASETS}/ar_classnames.json": "0fbd47c3112d8f049f4084e7ed4227a104db4c5df24ef675ba6eb7794cf96ade",
    f"{DATASETS}/ar_zeroshot_classification_templates.json": (
        "4855474f7b4b8c9c17454af837175db4efea9c9e0ed3b18defe97f91ce892791"
    ),
    f"{DATASETS}/babel_imagenet.json": "1699e9984d5d02f34640b06230f2d5ebacab2ff1554ddf55883858b5862afc5a",
    f"{DATASETS}/nllb_dist13b_prompts.json": "6973d7d915868b4fd3d0a354acab15a058d6f98628f83ab7d741d45887aa8985",
    BUILDER: "fb3858dfbda40779f1f8b35ff01ba00316a83ebfb1fd942ea1075f6dcac829ea",
    "label_cn.txt": "f7b6f4bb0ddec755dbea41577c7c5155a4fa2852706f2263c0d3015dc67a8181",
    "constants.py": "594a74f184724f2025a5385d1b6f66341ad9bd17920d23ded1f941d064dc5dbc",
}
ALL_SYNSETS = Entry(BUILDER, ("all_imagenet_wordnet_ids",))
SHARDS = "CLIP_benchmark shards, local or remote: test/{nshards.txt, 0.tar, …}"
CHINESE_CLIP = "Chinese-CLIP: test_imgs.tsv and test_texts.jsonl"
IMAGENET_LICENCE = "ImageNet terms of access: non-commercial research"
COCO_SOURCE = "pictures: COCO train2014 and val2014, cocodataset.org"
COCO_LICENCE = "captions CC-BY 4.0 (COCO); pictures under the terms of Flickr"
FLICKR_SOURCE = "pictures: Flickr30k, on request at shannon.cs.illinois.edu/DenotationGraph"
FLICKR_LICENCE = "pictures under the terms of Flickr, non-commercial research"


def _clip_benchmark(code: str) -> PromptSet:
    return PromptSet(
        class_names=Entry(f"{DATASETS}/{code}_classnames.json", ("imagenet1k",)),
        templates=Entry(f"{DATASETS}/{code}_zeroshot_classification_templates.json", ("imagenet1k",)),
    )


def _mclipeval(code: str) -> PromptSet:
    key = "imagenet1k" if code == "en" else f"imagenet1k_{code}"
    return PromptSet(
        class_names=Entry("constants.py", ("_CLASSNAMES", key)),
        templates=Entry("constants.py", ("_CLASSIFICATION_TEMPLATES", key)),
    )


# Protocols of ImageNet's pictures and of its relatives: what it is, and prompts by language.
IMAGENET_PROMPTS: dict[str, tuple[str, dict[str, PromptSet]]] = {
    "openai": ("OpenAI's English names and 80 templates", {"en": _clip_benchmark("en")}),
    "wukong": (
        "Wukong's Chinese names and 80 templates, as in CLIP_benchmark and in Chinese-CLIP's code",
        {"zh": _clip_benchmark("cn")},
    ),
    "cnclip_label": (
        "names of Chinese-CLIP's label_cn.txt with Wukong's 80 templates",
        {"zh": PromptSet(class_names=Entry("label_cn.txt"), templates=_clip_benchmark("cn").templates)},
    ),
    "clip_benchmark": (
        "CLIP_benchmark's names and templates: 49 Italian, 37 Japanese, 55 Arabic templates",
        {"it": _clip_benchmark("it"), "ja": _clip_benchmark("jp"), "ar": _clip_benchmark("ar")},
    ),
    "mclipeval": (
        "names and templates of mCLIPEval, the toolkit of AltCLIP's authors",
        {"zh": _mclipeval("cn"), "ja": _mclipeval("jp")}
        | {code: _mclipeval(code) for code in ("en", "it", "ko", "ar", "es", "fr", "ru")},
    ),
}


def _imagenet_protocols(images: int, classes: int, languages: tuple[str, ...]) -> tuple[Protocol, ...]:
    return tuple(
        Protocol(
            id=name,
            description=description,
            languages=having,
            counts={"images": images, "classes": classes},
            prompts=prompts,
        )
        for name, (description, prompts) in IMAGENET_PROMPTS.items()
        if (having := tuple(language for language in languages if language in prompts))
    )


def _imagenet(
    name: str,
    title: str,
    source: str,
    *,
    images: int,
    folders: tuple[str, ...],
    class_folders: Entry | int = ALL_SYNSETS,
    classes: int = 1000,
    licence: str = IMAGENET_LICENCE,
    traps: tuple[str, ...] = (),
    languages: tuple[str, ...] = ("en", "zh", "it", "ja", "ar", "ko", "es", "fr", "ru"),
) -> KnownBenchmark:
    kind = "class numbers 0 to 999" if isinstance(class_folders, int) else f"{classes:,} synset folders"
    return KnownBenchmark(
        name=name,
        title=title,
        kind="zero_shot",
        protocols=_imagenet_protocols(images, classes, languages),
        source=source,
        licence=licence,
        layouts=(f"{kind}: {' or '.join(f'{folder}/' for folder in folders)} below the root", SHARDS),
        traps=(
            *traps,
            "names and templates differ between tools, and with them the scores: compare equal protocols only",
        ),
        pictures=folders,
        class_folders=class_folders,
        subset_of=ALL_SYNSETS if classes < 1000 else None,
    )


IMAGENET_TITLE = "ImageNet-1k, validation"
IMAGENET_SOURCE = "ILSVRC2012_img_val.tar (md5 29b22e2961454d5413ddabcf34fc5622), image-net.org, after registration"
IMAGENET_FOLDERS = (".", "val", "validation", "ILSVRC2012_img_val", "imagenet1k/val")
CN_TRAPS = (
    "three sets of Chinese names are in use: wukong and cnclip_label share 759 of 1,000, wukong and mclipeval 763",
    "the published 59.6 of AltCLIP is mclipeval, whose 80 templates are 52 different ones",
    "repeated class names cannot be told apart: 1 in wukong, 3 in cnclip_label, 4 in mclipeval; results count them",
)
IMAGENETS = (
    _imagenet(
        "imagenet_cn",
        f"{IMAGENET_TITLE}, Chinese names",
        IMAGENET_SOURCE,
        images=50_000,
        folders=IMAGENET_FOLDERS,
        traps=CN_TRAPS,
        languages=("zh",),
    ),
    _imagenet("imagenet", IMAGENET_TITLE, IMAGENET_SOURCE, images=50_000, folders=IMAGENET_FOLDERS),
    _imagenet(
        "imagenet_a",
        "ImageNet-A, natural adversarial examples",
        "imagenet-a.tar, people.eecs.berkeley.edu/~hendrycks",
        images=7_500,
        classes=200,
        class_folders=Entry(BUILDER, ("imagenet_a_wnids",)),
        folders=(".", "imagenet-a"),
        licence="MIT (repository); pictures: their owners'",
        traps=("labels are 0 to 199 in the order of the synsets; the 200 names are those of the subset alone",),
    ),
    _imagenet(
        "imagenet_r",
        "ImageNet-R, renditions",
        "imagenet-r.tar, people.eecs.berkeley.edu/~hendrycks",
        images=30_000,
        classes=200,
        class_folders=Entry(BUILDER, ("imagenet_r_wnids",)),
        folders=(".", "imagenet-r"),
        licence="MIT (repository); pictures: their owners'",
        traps=("labels are 0 to 199 in the order of the synsets; the 200 names are those of the subset alone",),
    ),
    _imagenet(
        "imagenet_sketch",
        "ImageNet-Sketch",
        "ImageNet-Sketch.zip, github.com/HaohanWang/ImageNet-Sketch",
        images=50_889,
        folders=(".", "sketch", "imagenet-sketch"),
        licence="MIT (repository); pictures: their owners'",
        traps=("it has 50,889 pictures, not 50,000",),
    ),
    _imagenet(
        "imagenet_v2",
        "ImageNet-V2, matched frequency",
        "imagenetv2-matched-frequency.tar.gz, github.com/modestyachts/ImageNetV2",
        images=10_000,
        class_folders=1000,
        folders=(".", "imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"),
        licence="MIT (repository); pictures under the terms of Flickr",
        traps=("folders are class numbers without zeros before them: sorted as text, 10 comes before 2",),
    ),
)

_BABEL_LANGUAGES = (
    "ne id de nl af he sq uz kn ku ta lv ko ug el su kk sk gl om fa jv cs lo hy xh hr so gu am ar sa ca is it sv ga bg "
    "vi sd ur km pl hu sr fr hi et bs sw az mk es mn ja tl tr gd ro mg mr sl pt lt no yi uk ky ka bn or my en ps fi zh "
    "da ml be eo ha eu as te th cy si ru pa ms"
)
BABEL = KnownBenchmark(
    name="babel_imagenet",
    title="Babel-ImageNet, 90 languages",
    kind="zero_shot",
    protocols=(
        Protocol(
            id="nllb_prompts",
            description="BabelNet's names, 80 templates translated by NLLB; only pictures of the language's classes",
            languages=tuple(_BABEL_LANGUAGES.split()),
            prompts={
                language: PromptSet(
                    class_names=Entry(f"{DATASETS}/babel_imagenet.json", (language.upper(), 1)),
                    classes=Entry(f"{DATASETS}/babel_imagenet.json", (language.upper(), 0)),
                    templates=Entry(f"{DATASETS}/nllb_dist13b_prompts.json", (language.upper(),)),
                    placeholder="{}",
                )
                for language in _BABEL_LANGUAGES.split()
            },
            counts={"pictures": 50_000},
        ),
    ),
    source=IMAGENET_SOURCE,
    licence=f"{IMAGENET_LICENCE}; names: BabelNet's non-commercial licence",
    layouts=(
        f"1,000 synset folders: {' or '.join(f'{folder}/' for folder in IMAGENET_FOLDERS)} below the root",
        SHARDS,
    ),
    traps=(
        "languages have different classes and so different pictures: 885 classes in Chinese, 1,000 in English",
        "br, fy and la have names but no templates, and are not evaluated",
        "its English names are BabelNet's, not OpenAI's: do not compare them with imagenet",
    ),
    pictures=IMAGENET_FOLDERS,
    class_folders=ALL_SYNSETS,
)

COCO_CN = KnownBenchmark(
    name="coco_cn",
    title="COCO-CN, test",
    kind="retrieval",
    protocols=(
        Protocol(
            id="coco_cn_1053",
            description="1,053 written captions",
            languages=("zh",),
            counts={"images": 1000, "texts": 1053},
            annotations=(
                AnnotationFiles(captions=("coco_captions_cn_test_1k.txt",)),
                AnnotationFiles(captions=("imageid.human-written-caption.txt",), keep="coco-cn_test.txt"),
            ),
        ),
        Protocol(
            id="coco_cn_5000",
            description="5,000 captions translated by people from COCO's",
            languages=("zh",),
            counts={"images": 1000, "texts": 5000},
            annotations=(
                AnnotationFiles(captions=("coco_captions_cn_test_5k.txt",)),
                AnnotationFiles(captions=("imageid.manually-translated-caption.txt",), keep="coco-cn_test.txt"),
            ),
        ),
    ),
    source=f"captions: github.com/li-xirong/coco-cn, on request; {COCO_SOURCE}",
    licence="captions on request from their authors; pictures under the terms of Flickr",
    layouts=(
        "mCLIPEval: coco_captions_cn_test_1k.txt or _5k.txt",
        "COCO-CN: imageid.human-written-caption.txt (or manually-translated), coco-cn_test.txt",
        "pictures in Images/, or in train2014/ and val2014/",
        CHINESE_CLIP,
        SHARDS,
    ),
    traps=(
        "51 pictures have two written captions and one has three: 1,053 texts, not 1,000",
        "one of the 5,000 captions is a mere full stop: it counts",
        "the files with 'bosonseg' are cut into words and tagged: refused",
    ),
    pictures=(".", "Images", "images"),
    files=(
        KnownFile(
            name="coco_captions_cn_test_1k.txt",
            sha256="d455ccb3e1e1944684425c8697fcc8840a8335efba8f2621f210731ad1d1ff28",
        ),
        KnownFile(
            name="coco_captions_cn_test_5k.txt",
            sha256="046e48aa40c8ea742e5964500206be24c1f3e5e6b73188f61367d451e1a51cf0",
        ),
    ),
)

FLICKR30K = KnownBenchmark(
    name="flickr30k",
    title="Flickr30k, Karpathy's test split",
    kind="retrieval",
    protocols=(
        Protocol(
            id="karpathy_1k",
            description="Karpathy's test split, 5 captions a picture",
            languages=("en",),
            counts={"images": 1000, "texts": 5000},
            annotations=(
                AnnotationFiles(captions=("flickr30k_test_karpathy.txt",)),
                AnnotationFiles(captions=("dataset_flickr30k.json",)),
            ),
        ),
    ),
    source=f"captions: github.com/mehdidc/retrieval_annotations, release 1.0.0; {FLICKR_SOURCE}",
    licence=FLICKR_LICENCE,
    layouts=(
        "flickr30k_test_karpathy.txt, or Karpathy's dataset_flickr30k.json",
        "pictures in the root, Images/ or flickr30k-images/",
        CHINESE_CLIP,
        SHARDS,
    ),
    traps=("captions hold commas: only the first one after the picture's name separates",),
    pictures=(".", "Images", "images", "flickr30k-images", "flickr30k_images"),
)

FLICKR30K_CN = KnownBenchmark(
    name="flickr30k_cn",
    title="Flickr30k-CN, test",
    kind="retrieval",
    protocols=(
        Protocol(
            id="flickr30k_cn_5000",
            description="Karpathy's test split, 5 captions a picture, translated by people",
            languages=("zh",),
            counts={"images": 1000, "texts": 5000},
            annotations=(
                AnnotationFiles(captions=("flickr30k_test_CNA.txt",)),
                AnnotationFiles(captions=("flickr30k_cn_test.txt",)),
                AnnotationFiles(captions=("flickr30k_test_zh.txt",)),
            ),
        ),
    ),
    source=f"captions: github.com/li-xirong/cross-lingual-cap; {FLICKR_SOURCE}",
    licence=FLICKR_LICENCE,
    layouts=(
        "flickr30k_test_CNA.txt (mCLIPEval) or flickr30k_cn_test.txt (CLIP_benchmark, pull request 101)",
        "pictures in the root, Images/ or flickr30k-images/",
        CHINESE_CLIP,
        SHARDS,
    ),
    traps=(
        "flickr30k_test_zh.txt, which CLIP_benchmark downloads, has part-of-speech tags in its captions (text-to-image "
        "R@5 73.9 instead of 90.4): refused",
    ),
    pictures=FLICKR30K.pictures,
    files=(
        KnownFile(
            name="flickr30k_test_CNA.txt",
            sha256="93bb8470c9964fb999e7e9af657e9120c31a05eb25228ab1e9e085977c0527aa",
        ),
    ),
)

_COCO_FILES = (
    AnnotationFiles(captions=("coco_test_karpathy.json",)),
    AnnotationFiles(captions=("dataset_coco.json",)),
)
COCO = KnownBenchmark(
    name="coco",
    title="COCO Captions, Karpathy's 5k test split",
    kind="retrieval",
    protocols=(
        Protocol(
            id="karpathy_5k",
            description="Karpathy's test split, all captions",
            languages=("en",),
            counts={"images": 5000, "texts": 25_010},
            annotations=_COCO_FILES,
        ),
        Protocol(
            id="karpathy_5k_first5",
            description="Karpathy's test split, the first 5 captions of each picture",
            languages=("en",),
            counts={"images": 5000, "texts": 25_000},
            annotations=_COCO_FILES,
            first_captions=5,
        ),
    ),
    source=f"captions: github.com/mehdidc/retrieval_annotations, release 1.0.0; {COCO_SOURCE}",
    licence=COCO_LICENCE,
    layouts=("coco_test_karpathy.json, or Karpathy's dataset_coco.json", "pictures in val2014/", SHARDS),
    traps=("a few pictures have six captions or more: 25,010 texts, or 25,000 with the first five of each",),
)

XTD10_LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh")
XTD10 = KnownBenchmark(
    name="xtd10",
    title="XTD10, pictures of COCO in eleven languages",
    kind="retrieval",
    protocols=(
        Protocol(
            id="xtd10_1k",
            description="1 caption a picture",
            languages=XTD10_LANGUAGES,
            counts={"images": 1000, "texts": 1000},
            annotations=(
                AnnotationFiles(captions=("test_1kcaptions_{language}.txt",), names="test_image_names.txt"),
                AnnotationFiles(captions=("XTD10/test_1kcaptions_{language}.txt",), names="XTD10/test_image_names.txt"),
                AnnotationFiles(captions=("MIC/test_1kcaptions_{language}.txt",), names="XTD10/test_image_names.txt"),
                AnnotationFiles(captions=("STAIR/test_1kcaptions_{language}.txt",), names="XTD10/test_image_names.txt"),
                AnnotationFiles(captions=("xtd10-{language}.json",)),
                AnnotationFiles(captions=("xtd10_{language}_pair.txt",)),
            ),
        ),
    ),
    source=f"captions: github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10; {COCO_SOURCE}",
    licence="captions: Adobe Research licence, non-commercial research; pictures under the terms of Flickr",
    layouts=(
        "the repository: XTD10/test_image_names.txt, {XTD10,MIC,STAIR}/test_1kcaptions_LANG.txt",
        "CLIP_benchmark: xtd10-LANG.json; mCLIPEval: xtd10_LANG_pair.txt",
        "pictures in images/, Images/, xtd10/images/, or in train2014/ and val2014/",
        SHARDS,
    ),
    warning="800 of the 1,000 pictures are from COCO train2014: a model that saw COCO's captions has seen them",
    traps=(
        "one German caption is a mere question mark: it counts",
        "Japanese is jp in the names of its files; jp and ja are one language here",
        "mCLIPEval's pair files have no header, yet it skips their first line: its scores are of 999 or 998 pairs",
        "its pair files of es it ko pl ru tr zh lack the last picture (999 lines): refused, take the repository's",
    ),
    pictures=(".", "images", "Images", "xtd10/images"),
    files=tuple(
        KnownFile(name=name, sha256=digest)
        for name, digest in {
            "test_image_names.txt": "504a472dfd40e44f2d0facd6320b9dc1c7d64c58aac9840f0b1da4807cb3a30a",
            "test_1kcaptions_en.txt": "ac5531b6842c1d469fba80aa6f44e2af054e84a41da8f9eaf01d831e943039b9",
            "test_1kcaptions_de.txt": "51f1e9fe05d85b7cd33543676ed2fea51b05399cc403a5fca557ca7ecdb9a207",
            "test_1kcaptions_es.txt": "cacc43d4e7af56b02033865531ea70494049f1d0dd3ea89ff2a217e7e190c4f2",
            "test_1kcaptions_fr.txt": "84aa16954706a0f654b59788ffb6a3bcb1b1d9d12dc9d7a3de26730bc04664b5",
            "test_1kcaptions_it.txt": "b4095d3550eb1accf8c9c78314b4bef45847a3929b5c5fe15a1264ea31dec7cc",
            "test_1kcaptions_jp.txt": "20908aa5763ee7b1bacc1f29aa507532d3dc6a7e6a8c43e6acd2ec72d1e80c10",
            "test_1kcaptions_ko.txt": "92d35e082cd081724560c9abdb2b45753ceb52aaabddb9a0f79dc04967a36800",
            "test_1kcaptions_pl.txt": "b6af6b7941f44e902b50736dcf9a7221af28e755a259511652c599cf6ae89c78",
            "test_1kcaptions_ru.txt": "7d93631ff85b53592091b3cbfd9ca963397e77038fb3d0fdd9374b1b02ae98a3",
            "test_1kcaptions_tr.txt": "147e9763dcb6e6ebba0b98fc799f0145c7d90005fa03ca8ec5a7cf29a04dd136",
            "test_1kcaptions_zh.txt": "17229ff02ac85dd2d165f8316515a24fbe5100dbf486c22aaa12105dfb3353bf",
        }.items()
    ),
)


def _multi30k_files(task: int, captions: tuple[str, ...], names: str) -> tuple[AnnotationFiles, ...]:
    """In the repository or beside each other, under gzip or not; and mCLIPEval's, of either task by language."""
    folder = f"data/task{task}"
    repository = [
        AnnotationFiles(captions=tuple(f"{raw}{name}.{{language}}{end}" for name in captions), names=f"{splits}{names}")
        for raw, splits in (("", ""), (f"{folder}/raw/", f"{folder}/image_splits/"))
        for end in (".gz", "")
    ]
    return (*repository, AnnotationFiles(captions=("multi30k-{language}_test.txt",)))


MULTI30K = KnownBenchmark(
    name="multi30k",
    title="Multi30k, test 2016",
    kind="retrieval",
    protocols=(
        Protocol(
            id="task1",
            description="1 caption a picture, translated from English",
            languages=("en", "de", "fr", "cs"),
            counts={"images": 1000, "texts": 1000},
            annotations=_multi30k_files(1, ("test_2016_flickr",), "test_2016_flickr.txt"),
        ),
        Protocol(
            id="task2",
            description="5 captions a picture, each written in its language",
            languages=("en", "de"),
            counts={"images": 1000, "texts": 5000},
            annotations=_multi30k_files(2, tuple(f"test_2016.{n}" for n in range(1, 6)), "test_2016_images.txt"),
        ),
    ),
    source=f"captions: github.com/multi30k/dataset; {FLICKR_SOURCE}",
    licence="captions: for research, as published with the shared tasks; pictures under the terms of Flickr",
    layouts=(
        "the repository: data/task1/{raw/test_2016_flickr.LANG.gz, image_splits/test_2016_flickr.txt}, data/task2/",
        "mCLIPEval: multi30k-LANG_test.txt",
        "pictures in the root, Images/ or flickr30k-images/",
        SHARDS,
    ),
    traps=(
        "mCLIPEval's Multi30k is task2 in English and German, with 5 captions, and task1 in French and Czech, with 1",
        "only the raw files are sentences as written: tok/ holds them in lower case and cut into tokens",
    ),
    pictures=FLICKR30K.pictures,
    files=tuple(
        KnownFile(name=name, sha256=digest)
        for name, digest in {
            "test_2016_flickr.txt": "871e8ecafc66fb13e044ecccf669d04a865b4c58553227df86b933f0337a1563",
            "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
            "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
            "test_2016_flickr.fr.gz": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
            "test_2016_flickr.cs.gz": "200a4a74cc9560f051924abb9803be008d1908d77f747e9141aeb86dfd2797f1",
        }.items()
    ),
)

_CROSSMODAL_LANGUAGES = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro ru sv sw te th tr uk vi zh"
)
CROSSMODAL3600 = KnownBenchmark(
    name="crossmodal3600",
    title="Crossmodal-3600, 36 languages",
    kind="retrieval",
    protocols=(
        Protocol(
            id="first_caption",
            description="the first caption of each picture, as in CLIP_benchmark",
            languages=tuple(_CROSSMODAL_LANGUAGES.split()),
            counts={"images": 3600, "texts": 3600},
            annotations=tuple(
                AnnotationFiles(captions=(name,))
                for name in ("captions.jsonl", "xm3600/captions.jsonl", "crossmodal3600_captions-{language}.json")
            ),
            first_captions=1,
        ),
    ),
    source="captions.zip and images.tgz, google.github.io/crossmodal-3600",
    licence="captions CC-BY 4.0; pictures CC-BY 2.0 (Open Images)",
    layouts=(
        "captions.jsonl, or CLIP_benchmark's crossmodal3600_captions-LANG.json",
        "pictures in images/ or xm3600/images/",
        SHARDS,
    ),
    traps=(
        "pictures have two captions or more in most languages; other tools count all of them",
        "no is Norwegian: in YAML and on the command line write it in quotes",
    ),
    pictures=(".", "images", "xm3600/images"),
)

_FOLDER_SOURCE = "your own"
RETRIEVAL = KnownBenchmark(
    name="retrieval",
    title="any pictures with captions",
    kind="retrieval",
    protocols=(Protocol(id=GENERIC, description="your own data as they are", languages=()),),
    source=_FOLDER_SOURCE,
    licence=_FOLDER_SOURCE,
    layouts=(
        SHARDS,
        CHINESE_CLIP,
        "captions=FILE: CSV, TSV or JSONL with the columns image and caption (or a language), COCO's JSON, Karpathy's "
        "JSON, or lines NAME.jpg,caption; with several languages captions={en: FILE, zh: FILE}",
        "pictures=DIR: their folder, by default the root",
    ),
    pictures=(".", "images", "Images"),
)
ZERO_SHOT = KnownBenchmark(
    name="zero_shot",
    title="any pictures with class labels",
    kind="zero_shot",
    protocols=(Protocol(id=GENERIC, description="your own data as they are", languages=()),),
    source=_FOLDER_SOURCE,
    licence=_FOLDER_SOURCE,
    layouts=(f"{SHARDS}; classnames.LANG.txt and zeroshot_classification_templates.LANG.txt beside test/",),
)

KNOWN: dict[str, KnownBenchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *IMAGENETS,
        BABEL,
        COCO_CN,
        FLICKR30K_CN,
        FLICKR30K,
        COCO,
        XTD10,
        MULTI30K,
        CROSSMODAL3600,
        RETRIEVAL,
        ZERO_SHOT,
    )
}
