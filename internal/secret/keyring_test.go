package secret

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle"
)

func testKeyring(t *testing.T) *Keyring {
	t.Helper()
	k, err := OpenKeyring(filepath.Join(t.TempDir(), "keys", "state"), true)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAKeyIsMadeOnceForRootOnlyAndFoundAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "state")
	if _, err := OpenKeyring(path, false); isle.CodeOf(err) != isle.NotFound {
		t.Fatalf("a key that was not there: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(path)); err == nil {
		t.Fatal("looking for a key made its folder")
	}
	k, err := OpenKeyring(path, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		st, err := os.Stat(name)
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v (%v)", name, st.Mode(), mode, err)
		}
	}
	sealed, err := k.Seal("p", []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenKeyring(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := again.Open("p", sealed); err != nil || string(plain) != "plain" {
		t.Errorf("opened %q, %v", plain, err)
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Errorf("the folder of keys holds %v", left)
	}
}

func TestTwoThatMakeAKeyAtOnceHaveTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "state")
	ids := make(chan string, 8)
	for range cap(ids) {
		go func() { // ends by itself
			k, err := OpenKeyring(path, true)
			if err != nil {
				ids <- err.Error()
				return
			}
			ids <- k.ID()
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Errorf("another key: %s, %s", id, first)
		}
	}
}

func TestAKeyThatOthersCouldReadOrReplaceIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"group may read":        func(p string) error { return os.Chmod(p, 0o640) },
		"everybody may read":    func(p string) error { return os.Chmod(p, 0o604) },
		"somebody else's":       func(p string) error { return os.Chown(p, 65534, 0) },
		"folder open to others": func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) },
		"folder is somebody's":  func(p string) error { return os.Chown(filepath.Dir(p), 65534, 0) },
		"symbolic link":         func(p string) error { os.Rename(p, p+"2"); return os.Symlink(p+"2", p) },
		"folder in its place":   func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) },
		"empty":                 func(p string) error { return os.Truncate(p, 0) },
		"cut":                   func(p string) error { return os.Truncate(p, int64(keyFileSize-1)) },
		"longer":                func(p string) error { return os.Truncate(p, int64(keyFileSize+1)) },
		"damaged":               func(p string) error { return flip(p, len(keyPrefix)+3) },
		"damaged check value":   func(p string) error { return flip(p, keyFileSize-3) },
		"of another kind":       func(p string) error { return flip(p, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			k := testKeyring(t)
			if err := spoil(k.Path()); err != nil {
				t.Fatal(err)
			}
			b, _ := os.ReadFile(k.Path())
			for _, create := range []bool{false, true} {
				_, err := OpenKeyring(k.Path(), create)
				if isle.CodeOf(err) != isle.Invalid {
					t.Errorf("create %v: %v", create, err)
				}
				if err != nil && strings.Contains(err.Error(), hex.EncodeToString(k.key.bytes[:8])) {
					t.Errorf("the error has the key: %v", err)
				}
			}
			if now, _ := os.ReadFile(k.Path()); !bytes.Equal(now, b) {
				t.Error("the file was written")
			}
		})
	}
}

// flip changes a character so that what was hexadecimal stays so.
func flip(path string, at int) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if b[at] == '0' {
		b[at] = '1'
	} else {
		b[at] = '0'
	}
	return os.WriteFile(path, b, 0o600)
}

func TestWhatIsSealedOpensUnderItsKeyAndPurposeOnly(t *testing.T) {
	k, other := testKeyring(t), testKeyring(t)
	for _, size := range []int{0, 1, 64 << 10} {
		plain := bytes.Repeat([]byte("s"), size)
		a, err := k.Seal("secret/db/1", plain)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := k.Seal("secret/db/1", plain)
		if bytes.Equal(a, b) {
			t.Error("sealed twice the same")
		}
		if got, err := k.Open("secret/db/1", a); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("opened %d bytes of %d: %v", len(got), size, err)
		}
		for _, purpose := range []string{"", "secret/db/2", "secret/db/11", "secret/d", "secret/db/1\x00"} {
			if _, err := k.Open(purpose, a); isle.CodeOf(err) != isle.Invalid {
				t.Errorf("opened for %q: %v", purpose, err)
			}
		}
		_, err = other.Open("secret/db/1", a)
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "sealed under the key "+k.ID()) {
			t.Errorf("another key: %v", err)
		}
	}
	if _, err := k.Seal("p", make([]byte, maxSealed)); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("sealed too much: %v", err)
	}
}

func TestEveryChangedByteOfWhatIsSealedIsFound(t *testing.T) {
	k := testKeyring(t)
	sealed, err := k.Seal("p", []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for bit := range 8 {
			b := bytes.Clone(sealed)
			b[i] ^= 1 << bit
			if _, err := k.Open("p", b); isle.CodeOf(err) != isle.Invalid {
				t.Fatalf("byte %d bit %d: %v", i, bit, err)
			}
		}
		if _, err := k.Open("p", sealed[:i]); isle.CodeOf(err) != isle.Invalid {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
}

func TestAKeyringDoesNotPrintItsKey(t *testing.T) {
	k := testKeyring(t)
	held := struct{ ring *Keyring }{k}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b"} {
		all := fmt.Sprintf(verb, k) + fmt.Sprintf(verb, held) + fmt.Sprintf(verb, &held)
		for _, as := range []string{"%x", "%X", "%d", "%08b", "%#v"} {
			if needle := strings.Trim(fmt.Sprintf(as, k.key.bytes[:4]), "[]{}"); strings.Contains(all, needle) {
				t.Errorf("%s prints its key: %s", verb, all)
			}
		}
	}
}

func TestAKeyringWithoutAKeySaysWhy(t *testing.T) {
	why := isle.Errorf(isle.Unavailable, "the key is gone")
	k := WithoutKey("/nowhere", why)
	if _, err := k.Seal("p", nil); err != why {
		t.Error(err)
	}
	if _, err := k.Open("p", nil); err != why {
		t.Error(err)
	}
}

func FuzzSealed(f *testing.F) {
	k, err := newKey(make([]byte, keySize))
	if err != nil {
		f.Fatal(err)
	}
	ring := &Keyring{path: "key", key: k}
	sealed, _ := ring.Seal("p", []byte("plain"))
	f.Add(sealed)
	f.Add([]byte{formatOne})
	f.Add(append([]byte{2}, sealed[1:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Each process that fuzzes has sealed it with another nonce.
		if plain, err := ring.Open("p", b); err == nil && (string(plain) != "plain" || len(b) != len(sealed)) {
			t.Errorf("opened what was not sealed: %x", b)
		} else if err != nil && isle.CodeOf(err) != isle.Invalid {
			t.Error(err)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	k, err := newKey(bytes.Repeat([]byte{7}, keySize))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.encode())
	f.Add([]byte(keyPrefix))
	f.Add(bytes.ToUpper(k.encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseKey(b); err == nil && !bytes.Equal(got.encode(), b) {
			t.Errorf("read %q as the key of another file", b)
		}
	})
}
