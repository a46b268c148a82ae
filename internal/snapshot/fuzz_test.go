package snapshot

import (
	"os"
	"testing"

	"isle"
)

func FuzzManifest(f *testing.F) {
	golden, err := os.ReadFile("testdata/manifest.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil {
			if isle.CodeOf(err) != isle.Invalid {
				t.Errorf("%v has the code %s", err, isle.CodeOf(err))
			}
			return
		}
		if again, err := m.Encode(); err != nil || string(again) != string(b) {
			t.Errorf("%s is read, and written as %s: %v", b, again, err)
		}
		for _, v := range m.Volumes {
			if v.Size <= 0 || v.Bytes > v.Size {
				t.Errorf("%+v", v)
			}
		}
	})
}
