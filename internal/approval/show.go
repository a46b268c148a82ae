package approval

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reveal is a text as it is shown to who decides about it: nothing of it is left
// out, and what a reader would not see, or would take for something else, stands
// as ⟦U+202E⟧ or, of a byte that is no UTF-8, ⟦\xff⟧. Newlines stay. The warnings
// say what there was, each kind once.
func Reveal(b []byte) (shown string, warnings []string) {
	var out strings.Builder
	out.Grow(len(b))
	warn := func(w string) {
		if !slices.Contains(warnings, w) {
			warnings = append(warnings, w)
		}
	}
	for len(b) > 0 {
		n := wordLength(b)
		if n > 0 {
			marked := mixed(b[:n])
			if marked {
				warn("it has letters that look like others: ⟦…⟧ marks them")
			}
			for _, r := range string(b[:n]) {
				if marked && r >= utf8.RuneSelf && (!unicode.Is(unicode.Latin, r) || looksLatin(r)) {
					fmt.Fprintf(&out, "⟦%c U+%04X⟧", r, r)
				} else {
					out.WriteRune(r)
				}
			}
			b = b[n:]
			continue
		}
		r, n := utf8.DecodeRune(b)
		switch what := unseen(r); {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, "⟦\\x%02x⟧", b[0])
			warn("it has bytes that are no text (UTF-8)")
		case r == '\n' || r == '\t':
			out.WriteRune(r)
		case what != "":
			fmt.Fprintf(&out, "⟦U+%04X⟧", r)
			warn("it has " + what)
		case r == '⟦' || r == '⟧':
			fmt.Fprintf(&out, "⟦U+%04X⟧", r)
		default:
			out.WriteRune(r)
		}
		b = b[n:]
	}
	return out.String(), warnings
}

// unseen says what is wrong with showing a character as it is; "" if nothing.
func unseen(r rune) string {
	switch {
	case unicode.Is(unicode.Bidi_Control, r):
		return "characters that change the order in which a text is shown"
	case r < ' ' || r >= 0x7f && r < 0xa0:
		return "control characters"
	case unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Cs, unicode.Variation_Selector),
		r == 0x115f, r == 0x1160, r == 0x3164, r == 0xffa0, r == 0x2800, r == 0x034f, r == 0x17b4, r == 0x17b5:
		return "characters that are not seen"
	case r != ' ' && unicode.Is(unicode.Zs, r):
		return "spaces that are none"
	case unicode.In(r, unicode.Mn, unicode.Me):
		return "marks that are put on the character before"
	case r >= utf8.RuneSelf && !unicode.IsPrint(r):
		return "characters that are unknown here"
	case r > utf8.RuneSelf && slices.Contains(lookalikeSigns, r):
		return "signs that look like others"
	}
	return ""
}

// lookalikeSigns look like quotes, dashes and other signs that SQL, shells and
// URLs know.
var lookalikeSigns = []rune("‘’‚‛“”„‟′″‵‶´ˈʹʺʻʼʽ˂˃‹›⁄∕⧸⑊＇＂＊－＿／＼．，；：；＝％＃＆＋（）＜＞＠！｜﹔﹕﹣−–—‐‑‒―∗⁎٭․‥…·∙，")

// wordLength is the length of the word that b begins with, in bytes.
func wordLength(b []byte) (n int) {
	for n < len(b) {
		r, k := utf8.DecodeRune(b[n:])
		if !(unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.Is(unicode.Nl, r) || r == '_') || unseen(r) != "" {
			break
		}
		n += k
	}
	return n
}

// mixed reports whether a word could be taken for another: it has ASCII letters
// and others that are not Latin, or only look so, or none and looks Latin whole.
func mixed(word []byte) bool {
	ascii, other, looks, letters := false, false, 0, 0
	for _, r := range string(word) {
		switch {
		case r < utf8.RuneSelf:
			ascii = ascii || unicode.IsLetter(r)
			continue
		case looksLatin(r):
			looks++
		}
		letters++
		other = other || !unicode.Is(unicode.Latin, r) || looksLatin(r)
	}
	return letters > 0 && (ascii && other || looks == letters)
}

// looksLatin reports whether a letter is easily taken for an ASCII one.
func looksLatin(r rune) bool {
	switch {
	case r < utf8.RuneSelf:
		return false
	case r >= 0xff10 && r <= 0xff5a, r >= 0x1d400 && r <= 0x1d7ff, r >= 0x2100 && r <= 0x214f, r >= 0x2160 && r <= 0x217f:
		return true // full-width, mathematical, letter-like, Roman numerals
	}
	return strings.ContainsRune("аеорсухіјѕһԁԛԝѵтгпвнмкАВЕКМНОРСТУХІЈЅԚԜѴЗοανικρυχτωΑΒΕΖΗΙΚΜΝΟΡΤΥΧıſɑɡɩɪʏʟꓮꓐꓑօոսհցքՕՏ", r)
}

// Show is a parameter as it is shown to who decides, with its type.
func (p Param) Show() (shown string, warnings []string) {
	if p.Null {
		return "NULL", nil
	}
	if !p.Binary {
		return Reveal(p.Value)
	}
	b := p.Value
	switch {
	case slices.Contains([]string{"int2", "int4", "int8", "21", "23", "20"}, p.Type) && (len(b) == 2 || len(b) == 4 || len(b) == 8):
		wide := make([]byte, 8)
		if b[0]&0x80 != 0 {
			for i := range wide {
				wide[i] = 0xff
			}
		}
		copy(wide[8-len(b):], b)
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(wide)), 10), nil
	case (p.Type == "float8" || p.Type == "701") && len(b) == 8:
		return strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64(b)), 'g', -1, 64), nil
	case (p.Type == "bool" || p.Type == "16") && len(b) == 1 && b[0] <= 1:
		return strconv.FormatBool(b[0] == 1), nil
	case slices.Contains([]string{"text", "varchar", "bpchar", "name", "25", "1043", "1042", "19"}, p.Type):
		return Reveal(b)
	}
	return "binary " + hex.EncodeToString(b), nil
}
