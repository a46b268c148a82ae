package approval

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestWhatAReaderWouldNotSeeIsShown(t *testing.T) {
	for text, want := range map[string]string{
		"UPDATE orders SET paid = true\nWHERE id = 1": "UPDATE orders SET paid = true\nWHERE id = 1",
		"DELETE FROM x -- \u202e 1=di EREHW":          "DELETE FROM x -- ⟦U+202E⟧ 1=di EREHW",
		"a\x1b[2Kb\rc\x00d\x7f\u0085e":                "a⟦U+001B⟧[2Kb⟦U+000D⟧c⟦U+0000⟧d⟦U+007F⟧⟦U+0085⟧e",
		"or\u200bders":                                "or⟦U+200B⟧ders",
		"\xff\xfeA":                                   "⟦\\xff⟧⟦\\xfe⟧A",
		"раyments":                                    "⟦р U+0440⟧⟦а U+0430⟧yments",
		"СОР":                                         "⟦С U+0421⟧⟦О U+041E⟧⟦Р U+0420⟧",
		"'Müller' 'Ærø' 'привет' '東京'":                "'Müller' 'Ærø' 'привет' '東京'",
		"ｓｅｌｅｃｔ":                                      "⟦ｓ U+FF53⟧⟦ｅ U+FF45⟧⟦ｌ U+FF4C⟧⟦ｅ U+FF45⟧⟦ｃ U+FF43⟧⟦ｔ U+FF54⟧",
		"a\u00a0b\u3000c\u2028d":                      "a⟦U+00A0⟧b⟦U+3000⟧c⟦U+2028⟧d",
		"x ’ y":                                       "x ⟦U+2019⟧ y",
		"⟦U+202E⟧":                                    "⟦U+27E6⟧U+202E⟦U+27E7⟧",
		"e\u0301":                                     "e⟦U+0301⟧",
		"\U000e0041\ufe0f":                            "⟦U+E0041⟧⟦U+FE0F⟧",
		"ᅟㅤ":                                          "⟦U+115F⟧⟦U+3164⟧",
	} {
		got, warnings := Reveal([]byte(text))
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if (got != text) != (len(warnings) > 0) && !strings.HasPrefix(text, "⟦") {
			t.Errorf("%q: warnings %q", text, warnings)
		}
	}
}

func FuzzNothingThatIsRevealedSteersATerminalOrHides(f *testing.F) {
	f.Add([]byte("SELECT 1 \x1b[31m \u202e раy"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, _ := Reveal(b)
		if !utf8.ValidString(got) {
			t.Fatalf("%q", got)
		}
		for _, r := range got {
			if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Bidi_Control, unicode.Zl, unicode.Zp)) {
				t.Fatalf("%q shows %U", b, r)
			}
		}
		if again, _ := Reveal(append(b[:len(b):len(b)], ' ')); again != got+" " && !strings.HasPrefix(again, got) && utf8.Valid(b) {
			t.Fatalf("%q: a space after it changes it", b)
		}
	})
}

func TestAParameterIsShownByItsType(t *testing.T) {
	for want, p := range map[string]Param{
		"NULL":          {Type: "int4", Null: true},
		"7":             {Type: "int4", Value: []byte("7")},
		"-2":            {Type: "int4", Value: []byte{0xff, 0xff, 0xff, 0xfe}, Binary: true},
		"258":           {Type: "int8", Value: []byte{0, 0, 0, 0, 0, 0, 1, 2}, Binary: true},
		"true":          {Type: "bool", Value: []byte{1}, Binary: true},
		"a⟦U+001B⟧":     {Type: "text", Value: []byte("a\x1b"), Binary: true},
		"binary 00ff":   {Type: "bytea", Value: []byte{0, 0xff}, Binary: true},
		"binary 010203": {Type: "int4", Value: []byte{1, 2, 3}, Binary: true},
	} {
		if got, _ := p.Show(); got != want {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
}
