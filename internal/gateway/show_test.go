package gateway_test

import (
	"bytes"
	"strings"
	"testing"

	"isle/internal/gateway"
)

func TestPartOfAValueSaysLittle(t *testing.T) {
	for in, want := range map[string]string{
		"ada@example.com":       "a***@e*****.com",
		"a@example.com":         "***@e*****.com",
		"ada@localhost":         "a***@*****",
		"ada@b.c":               "a***@*****",
		"élodie@müller.example": "é***@m*****.example",
		"4111 1111 1111 1111":   "****1111",
		"+49 170 1234567":       "****4567",
		"Ada":                   "****",
		"Ada L":                 "A****",
		"Ada Lovelace":          "A****e",
		"Überraschung":          "Ü****g",
		"":                      "****",
		"\xff\xfe@example.com":  "****",
		"@":                     "****",
	} {
		if got := gateway.Show(gateway.ShowPartial, in, nil); got != want {
			t.Errorf("%q shows as %q, want %q", in, got, want)
		}
	}
}

func TestEqualValuesHashEqualOnlyUnderOneKey(t *testing.T) {
	a, b := gateway.MaskKey([]byte("server"), "orders-db"), gateway.MaskKey([]byte("server"), "shop-db")
	one := gateway.Show(gateway.ShowHash, "ada@example.com", a)
	if one != gateway.Show(gateway.ShowHash, "ada@example.com", a) {
		t.Error("one value has two hashes")
	}
	if one == gateway.Show(gateway.ShowHash, "ada@example.com", b) || one == gateway.Show(gateway.ShowHash, "ada@example.org", a) {
		t.Error("what differs hashes equal")
	}
	if len(one) != 32 {
		t.Errorf("a hash of %d characters", len(one))
	}
}

func TestWhatIsDetectedIsMaskedInPlace(t *testing.T) {
	all, err := gateway.NewDetectors([]string{"card", "iban", "token"})
	if err != nil {
		t.Fatal(err)
	}
	jwt := "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJlLWhlcmU"
	for in, want := range map[string]string{
		"4111111111111111":                        "************1111",
		"pay 4111-1111-1111-1111 now":             "pay ****-****-****-1111 now",
		"12 4111 1111 1111 1111":                  "12 **** **** **** 1111",
		"n4111111111111111":                       "n************1111",
		"a1b4111111111111111":                     "a1b************1111",
		"378282246310005":                         "***********0005",
		"4111111111111112":                        "4111111111111112", // no check digit
		"1234567812345670":                        "1234567812345670", // nobody gives these
		"0.4111111111111111":                      "0.4111111111111111",
		"41111111111111112":                       "41111111111111112",
		"20261122024500":                          "20261122024500",
		"DE89370400440532013000":                  "DE********************",
		"iban: de89 3704 0044 0532 0130 00.":      "iban: de** **** **** **** **** **.",
		"GB82WEST12345698765432":                  "GB********************",
		"DE89370400440532013001":                  "DE89370400440532013001",
		"AKIAIOSFODNN7EXAMPLE":                    "AKIA****************",
		"AKIAIOSFODNN7EXAMPLEX":                   "AKIAIOSFODNN7EXAMPLEX",
		"key=ghp_" + strings.Repeat("a", 36):      "key=ghp_" + strings.Repeat("*", 36),
		"Bearer " + jwt:                           "Bearer eyJ" + strings.Map(stars, jwt[3:]),
		"risk-free, sk-and-more":                  "risk-free, sk-and-more",
		"isle_" + strings.Repeat("a", 46):         "isle_" + strings.Repeat("a", 46), // no checksum
		"":                                        "",
		"x":                                       "x",
		"ordinary text of 12 words, or 7, and é.": "ordinary text of 12 words, or 7, and é.",
	} {
		b := []byte(in)
		if all.Mask(b, '*'); string(b) != want {
			t.Errorf("%q became %q, want %q", in, b, want)
		}
	}
	if _, err := gateway.NewDetectors([]string{"cards"}); err == nil {
		t.Error("a detector that there is not was taken")
	}
}

func stars(r rune) rune {
	if r == '.' {
		return r
	}
	return '*'
}

func FuzzDetectorsStayInPlace(f *testing.F) {
	f.Add([]byte("pay 4111 1111 1111 1111 DE89370400440532013000 eyJhbGciOiJFZERTQSJ9.eyJz.x AKIAIOSFODNN7EXAMPLE"))
	f.Add([]byte("eyJ.."))
	f.Add([]byte("DE8"))
	all, err := gateway.NewDetectors([]string{"card", "iban", "token"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		b := bytes.Clone(in)
		found := all.Mask(b, '*')
		if len(b) != len(in) || found == 0 && !bytes.Equal(b, in) {
			t.Fatalf("%q became %q", in, b)
		}
		for i := range b {
			if b[i] != in[i] && b[i] != '*' {
				t.Fatalf("%q became %q", in, b)
			}
		}
		gateway.Show(gateway.ShowPartial, string(in), nil)
	})
}

func BenchmarkDetectors(b *testing.B) {
	all, _ := gateway.NewDetectors([]string{"card", "iban", "token"})
	text := []byte("An ordinary line of text, of the 22nd of November 2026, order 4711-22, sent to nobody in particular.")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		all.Mask(text, '*')
	}
}
