"""Strings on which tokenizers differ. Plain data: every entry is there for a reason its group names."""

EOT = "<|endoftext|>"

WHITESPACE = [
    "", " ", "  ", "   ", " " * 7, " " * 64, "\n", "\n\n", "\n\n\n\n\n", "\t", "\t\t\t", " \n", "\n ", "\r\n", "\r\n\r\n", "\r", "\n\r",
    " \t \n \r\n \t ", "a\n", "a \n", "a  \n  b", "a   b", "a \t b", "  leading", "trailing  ", "  both  ", "\n\nhello\n\n  world\n",
    "tab\tseparated\tvalues\n1\t2\t3\n", "end with spaces and newline   \n", "one\r\ntwo\r\nthree\r\n",
    "no-break\u00a0space", "\u00a0\u00a0", "em\u2003space", "\u2003\u2003x", "ideographic\u3000space", "zero\u200bwidth", "\u200b",
    "line\u2028paragraph\u2029end", "next\u0085line", "vertical\x0btab\x0cfeed", "ogham\u1680space", "a\u2009b\u202fc",
]

CONTROL = [
    "\x00", "a\x00b", "\x00\x00\x00", "\x01\x02\x03\x04", "\x07\x08", "\x1b[31mred\x1b[0m", "\x1c\x1d\x1e\x1f", "\x7f", "\x80\x81\x9f",
    "soft\u00adhyphen", "left\u200eright\u200fmarks", "\u202eoverride\u202c", "word\u2060joiner", "\ufeff", "\ufeffwith BOM", "in\ufeffside",
    "\ufffd", "a\ufffdb", "\ufffd\ufffd\ufffd", "\ufffe\uffff", "\ud7ff", "\ue000", "\ud7ff\ue000", "\uf8ff", "\U000f0000\U0010fffd",
    "\U0010ffff", "\U00010000", "\u0378", "\U000e0041\U000e007f",
]

EMOJI = [
    "🙂", "🙂🙂🙂", "👍🏽", "❤️", "❤", "👨‍👩‍👧‍👦", "👩🏿‍🚀 in space", "🏳️‍🌈🏴‍☠️", "🇫🇷🇯🇵", "🇫", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "1️⃣2️⃣", "text🙂text", " 🙂 ", "🙂\n🙂", "\u200d", "☕️☕︎", "©®™", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𝟏𝟐𝟑",
]

SCRIPTS = [
    "é", "e\u0301", "café cafe\u0301", "Å\u212bA\u030a", "ﬁ ﬂ ﬀ", "ẞß", "İiIı", "ǅ", "ñ\u0303\u0303\u0303", "Z̷̢̛a̸͝l̵g̶o̷", "\u0301", " \u0301",
    "Привет, мир!", "Ελληνικά γράμματα", "你好，世界！", "人人生而自由", "中文 English 混合 text", "こんにちは世界", "カタカナ ｶﾀｶﾅ", "ひらがな、漢字。",
    "안녕하세요 세계", "\u1112\u1161\u11ab", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "שָׁלוֹם עולם", "नमस्ते दुनिया", "क्षत्रिय", "ক্ষুদ্র", "தமிழ்", "ไทยไม่มีช่องว่าง",
    "ភាសាខ្មែរ", "ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "𐍈𐌰𐌹", "𓀀𓁐", "𠜎𠜱", "Tiếng Việt", "Ǆ ǆ", "ﷺ", "１２３ ＡＢＣ", "½ ² ³ ① Ⅷ", "٠١٢٣ १२३ 一二三",
]

WORDS = [
    "Hello world", "hello", " hello", "Hello, world!", "HELLO WORLD", "CamelCaseWords", "snake_case_words", "kebab-case-words",
    "I'm you're he's we'll they've I'd can't", "'s 't 're 've 'm 'll 'd", "I'M YOU'RE HE'S WE'LL THEY'VE I'D CAN'T", "'S 'T 'LL", "it’s don’t ’s",
    "''s", "' s", "rock'n'roll 'twas o'clock", "don''t", "x'sy", "'", "''''", '"quoted"', "“curly” ‘quotes’", "…", "...", "....", "!!!???", "a...b",
    "dash-dash--dash---", "en–em—dashes", "under__score", "(parens) [brackets] {braces} <angles>", "#hashtag @mention $cash %percent ^caret &and *star",
    "e.g. i.e. etc. U.S.A.", "Mr. Smith's dog.", "a.b,c;d:e!f?g", " .", " ,", ". . .", "word.", " word.word", "a" * 100, "ab" * 300, "Lorem" * 40,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", "antidisestablishmentarianism",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "the the the the the", "xyzzy qwrtpsdfghjkl",
]

NUMBERS = [
    "0", "1", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "-42", "+1 (555) 010-9999", "1e-5 2E+10", "0x7fff 0b1010 0o17",
    "2024-02-29T23:59:59Z", "12:34:56", "50%", "$19.99", "1st 2nd 3rd", "v1.2.3-rc.4+build5", "192.168.0.1", "::1", "1 2 3", "1  2", "a1b2c3", "007", "9" * 50,
]

CODE = [
    "fn main() {\n    println!(\"Hello\");\n}\n", "def f(x):\n\treturn x ** 2\n", "if (a && b || !c) { return; }", "x = y if z else -w", "a[i]+=b[j]*c;",
    "SELECT * FROM t WHERE a = 'b';", "<html><body class=\"x\">&amp;</body></html>", '{"a": [1, 2, {"b": null}], "c": "\\u00e9"}', "C:\\Users\\name\\file.txt",
    "/usr/local/bin/../lib", "https://example.com/path?q=a%20b&r=1#frag", "user@example.com", "```rust\nlet x = 1;\n```", "# Title\n\n- item 1\n- item 2\n  - nested\n",
    "    four spaces\n        eight spaces\n", "\tif x:\n\t\tpass", "// comment\n/* block */", "$\\frac{a}{b} \\leq \\sqrt{2}$", "a\\nb", "regex: ^\\s*(\\w+)\\s*=\\s*(.*?)$", "==>=<=!=", "\\", "`", "~~~",
]

SPECIAL = [
    EOT, EOT + EOT, f" {EOT}", f"{EOT} ", f" {EOT} ", f"a{EOT}b", f"a {EOT} b", f"a\n{EOT}\nb", f"{EOT}{EOT}{EOT} text", f"Hello{EOT}", f"{EOT}Hello", f"{EOT} Hello world",
    "<|endoftext|", "|endoftext|>", "<|end of text|>", "<|ENDOFTEXT|>", "<|endoftext|>>", "<<|endoftext|>", "<| endoftext |>", "<|endo<|endoftext|>ftext|>", "<s></s><pad><unk>",
    "<|im_start|>user\nhi<|im_end|>", "<|left|>", "a <|left|> b", "a   <|left|>   b", "a<|right|>  b", "a \n <|both|> \n b", "<|both|><|both|>", "<tool>", "a<tool>b", " <tool> ",
    "word", "wordy swordword word", "word, word. word!", "wordword", "_word_", "ÀÉÎ", "a ÀÉÎ b", "A\u0300E\u0301I\u0302", "aQQQb", "QQQQQQ", "\n\n\nparagraph", "line\n\n\n\nline", "<|left|><|right|><|both|><tool>word",
]

ALL = WHITESPACE + CONTROL + EMOJI + SCRIPTS + WORDS + NUMBERS + CODE + SPECIAL

# For the tokenizers of the families alone: SentencePiece's own characters, and the special tokens of each as they stand in prompts.
FAMILIES = [
    "\u2581", "\u2581\u2581", " \u2581 ", "a\u2581b", "\u2581 a", "<0x0A>", "<0x41><0x42>", "<0xff>", " <0x0A> ",
    "<unk>", "<s>", "</s>", "<pad>", "a<s>b", "<s> a", "<s>  a</s> b", " <s>", "a </s>\n b", "<s><s>", "<unk>x", "x<unk> y",
    "<|user|>\nhi<|end|>\n<|assistant|>\n", "<|user|>   hi <|end|>", "<|end|>\n\n\nx", "<|assistant|>x", "</s>  x", "<|endoftext|>  x",
    "[INST] Hello [/INST]", "<s>[INST]  a [/INST] b</s>", "[INST][/INST]", "[AVAILABLE_TOOLS] []",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<start_of_turn>  x", "<unused0>", "<mask>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|eot_id|>", "<|python_tag|>x", "<|end_of_text|>",
    "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>user\n\u00e9e\u0301<|im_end|>\n", "<tool_call>\n{}\n</tool_call>",
    "<|start|>assistant<|channel|>final<|message|>Hi<|return|>", "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>User: hi\n\nAssistant:", "a<\uff5cend\u2581of\u2581sentence\uff5c>",
    "  two   three    four", "a  b   c    d", " " * 20 + "x", "\n" * 12 + "x", "\t\tx", " \n  \n   x", "x" + " " * 9,
    "tokenization Hello", "HTTPServer iPhone eBay McDonald", "\u01c5abc\u02b0 d\u0301ef", "don't DON'T I'LL we'Ve \u0130'S", "12345678901 1,234.5 \u0661\u0662\u0663\u0664",
    "a/b//c ///\n", "!Hello #tag @x $y", "=\n\n-\r\n", "\u4e2d\u6587\u3042\u30a2\u97d3\ud55c\uae00 mixed\u4e2d", "\u0416\u0436 \u03a9\u03c9 \u1e9e",
]
