package lab

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Folders of a state whose files are named by hash: they may be shared between
// states. downloads hold what came over the network; built holds what was made of
// it, by a server of the same version.
var (
	downloads = []string{"images/blobs", "debian/lists"}
	built     = []string{"images/layers", "build/steps", "debian/lists"}
)

// Cache is the folder, outside the checkout, that keeps what tests download: of
// one kind, for later runs. ISLE_TEST_CACHE moves it.
func Cache(kind string) string {
	dir := os.Getenv("ISLE_TEST_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = os.TempDir()
		}
		dir = filepath.Join(base, "isle-test")
	}
	return filepath.Join(dir, kind)
}

// SeedDownloads gives a state folder what earlier runs have downloaded.
func SeedDownloads(state string) { Seed(Cache("downloads"), state) }

// KeepDownloads keeps what a state folder has downloaded for later runs.
func KeepDownloads(state string) { Seed(state, Cache("downloads")) }

// Seed gives to what from has downloaded. What fails is downloaded again.
func Seed(from, to string) { share(downloads, from, to) }

// SeedBuilt gives to, a new state, what from has built: it finds there whatever
// it is to build of the same inputs. For tests that build only to run it.
func SeedBuilt(from, to string) { share(built, from, to) }

// SeedLayers is SeedBuilt with no layers but those with the digests.
func SeedLayers(from, to string, digests []string) {
	share([]string{"build/steps", "debian/lists"}, from, to)
	for _, d := range digests {
		share([]string{"images/layers/" + strings.Replace(d, ":", "/", 1)}, from, to)
	}
}

// share copies files and what is in folders: a store must not share an inode
// with another one.
func share(folders []string, from, to string) {
	for _, d := range folders {
		root := filepath.Join(from, d)
		filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return nil
			}
			target := filepath.Join(to, rel)
			if _, err := os.Stat(target); err == nil {
				return nil
			}
			os.MkdirAll(filepath.Dir(target), 0o700)
			CopyFile(path, target)
			return nil
		})
	}
}

// CopyFile copies a file and its permissions; what is at to is replaced whole.
func CopyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(to), ".copy-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(info.Mode().Perm()), out.Close())
	if err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}
