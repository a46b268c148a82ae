package conceal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"strings"
	"testing"
)

const value = `p<w/&"+ü=secret`

func TestAValueIsHiddenHoweverItIsWritten(t *testing.T) {
	f := Of(value, "another one")
	escaped, err := json.Marshal("before " + value + " behind")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"as it is": "a " + value + " b", "twice": value + value, "of a URL": "?q=" + url.QueryEscape(value), "of a path": "/" + url.PathEscape(value), "JSON": string(escaped),
		"HTML": html.EscapeString(value), "hexadecimal": hex.EncodeToString([]byte(value)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(value))),
		"base64": base64.StdEncoding.EncodeToString([]byte("user:" + value)), "base64, one further": base64.StdEncoding.EncodeToString([]byte("users:" + value + "!")),
		"base64, two further": base64.URLEncoding.EncodeToString([]byte("someone:" + value + "!!")), "another": "x another one x",
	} {
		b := []byte(text)
		if !f.In(text) {
			t.Errorf("%s: it is not found", name)
		}
		f.Hide(b)
		if len(b) != len(text) || f.In(string(b)) || !bytes.Contains(b, []byte("********")) {
			t.Errorf("%s: %q became %q", name, text, b)
		}
	}
	if text := []byte("a text with nothing in it"); f.In(string(text)) {
		t.Errorf("something is found in %q", text)
	}
}

func TestWhatIsTooShortToTellIsLeft(t *testing.T) {
	f := Of("seven77", "")
	text := []byte("seven77 is seven77")
	f.Hide(text)
	if f.In(string(text)) || f.Most() != 0 || string(text) != "seven77 is seven77" {
		t.Errorf("%q", text)
	}
}

// Nothing of a value is left in what is shown, wherever in a text it stands.
func FuzzHide(f *testing.F) {
	f.Add("12345678", "a", "b")
	f.Add("aaaaaaaa", "aaaa", "aaa")
	f.Add(value, "%", "&amp;")
	f.Fuzz(func(t *testing.T, value, before, behind string) {
		if len(value) < Least || len(value) > 4<<10 {
			return
		}
		forms := Of(value)
		for _, form := range forms.All() {
			b := []byte(before + string(form) + behind)
			if !forms.In(string(b)) {
				t.Fatalf("%q is not found in %q", form, b)
			}
			if forms.Hide(b); bytes.Contains(b, []byte(value)) && !strings.Contains(value, "********") {
				t.Errorf("%q of %q became %q", before+string(form)+behind, value, b)
			}
		}
	})
}
