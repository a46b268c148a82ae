package lab

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// downloads are the folders of a state that hold what came over the network,
// all of it named by hash: they may be shared between states.
var downloads = []string{"images/blobs", "debian/lists"}

func cacheFolder() string {
	if dir := os.Getenv("ISLE_TEST_CACHE"); dir != "" {
		return filepath.Join(dir, "downloads")
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	return filepath.Join(base, "isle-test", "downloads")
}

// SeedDownloads gives a state folder what earlier runs have downloaded.
func SeedDownloads(state string) { Seed(cacheFolder(), state) }

// KeepDownloads keeps what a state folder has downloaded for later runs.
func KeepDownloads(state string) { Seed(state, cacheFolder()) }

// Seed gives to what from has downloaded, by copying: a store must not share
// an inode with another one. What fails is downloaded again.
func Seed(from, to string) {
	for _, d := range downloads {
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
			copyFile(path, target)
			return nil
		})
	}
}

func copyFile(from, to string) {
	in, err := os.Open(from)
	if err != nil {
		return
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".seed-")
	if err != nil {
		return
	}
	_, err = io.Copy(out, in)
	if info, e := in.Stat(); e == nil {
		out.Chmod(info.Mode().Perm())
	}
	if out.Close() != nil || err != nil {
		os.Remove(out.Name())
		return
	}
	os.Rename(out.Name(), to)
}
