package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/problem"
)

// VariablePrefix begins the names of the variables that may be named: others of
// the server's environment are not there for connections.
const VariablePrefix = "ISLE_SECRET_"

// checkReference says whether a place outside may be named, not whether there
// is something.
func (s *Secrets) checkReference(backend, reference string) error {
	if len(reference) > 1024 || strings.ContainsFunc(reference, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' }) {
		return isle.Errorf(isle.Invalid, "the reference is too long, or holds control characters").WithHint("it has at most 1024 bytes of text")
	}
	switch backend {
	case Environment:
		return checkVariable(reference)
	case File:
		_, _, err := s.below(reference)
		return err
	case Vault:
		if s.cfg.Vault.Address == "" {
			return noVault()
		}
		_, err := parseVaultReference(reference)
		return err
	}
	return isle.Errorf(isle.Invalid, "there is no backend %q", problem.Clip(backend)).WithHint("want %s, %s, %s or %s", Stored, Environment, File, Vault)
}

func checkVariable(name string) error {
	rest, ok := strings.CutPrefix(name, VariablePrefix)
	if !ok || rest == "" || strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return isle.Errorf(isle.Invalid, "%q is no variable that a secret may be in", problem.Clip(name)).
			WithHint("its name begins with %s, and has capital letters, digits and underscores; set it where the server is started", VariablePrefix)
	}
	return nil
}

// fromEnvironment takes a variable.
func (s *Secrets) fromEnvironment(name string) ([]byte, error) {
	if err := checkVariable(name); err != nil {
		return nil, err
	}
	v, ok := s.cfg.Getenv(name)
	if !ok {
		return nil, isle.Errorf(isle.Unavailable, "the server has no variable %s", name).
			WithHint("set it where the server is started, for example in a systemd drop-in, and start the server again")
	}
	return []byte(v), nil
}

// below finds the folder of those that may be named which a path is below.
func (s *Secrets) below(path string) (folder, rest string, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", "", isle.Errorf(isle.Invalid, "%q is no absolute path in its shortest form", problem.Clip(path)).WithHint("it is a path on the server's machine, such as /etc/isle/secrets/db")
	}
	for _, dir := range s.cfg.Files {
		dir = filepath.Clean(dir)
		if rest, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rest) && rest != "." {
			return dir, rest, nil
		}
	}
	where := strings.Join(s.cfg.Files, ", ")
	if where == "" {
		where = "no folder"
	}
	return "", "", isle.Errorf(isle.Refused, "the file %s may not be named: only what is below %s", path, where).
		WithHint("put it there, or name another folder for secrets with `isle server --secret-files`")
}

// fromFile reads a file: one that nobody else may read, reached through no
// symbolic link. One newline at its end is not part of the value.
func (s *Secrets) fromFile(path string) ([]byte, error) {
	folder, rest, err := s.below(path)
	if err != nil {
		return nil, err
	}
	dir, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, cannotRead(folder, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, rest, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, cannotRead(path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	// Somebody who may write to the folder could have put another file of root's
	// there, under a second name.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		return nil, isle.Errorf(isle.Unavailable, "the file %s has another name elsewhere (a hard link)", path).WithHint("make it a file of its own: cp %s %s.new; mv %s.new %s", path, path, path, path)
	}
	b, err := readPrivate(f, MaxValue+1)
	return bytes.TrimSuffix(b, []byte("\n")), err
}

// readPrivate reads an open file that only its owner may use, of at most limit
// bytes.
func readPrivate(f *os.File, limit int) ([]byte, error) {
	if err := private(f); err != nil {
		return nil, isle.Errorf(isle.Unavailable, "the file %s %w", f.Name(), err).
			WithHint("it has to be a regular file of whom the server runs as, of mode 0600: chown root %s; chmod 600 %s", f.Name(), f.Name())
	}
	b := make([]byte, limit+1)
	n, err := io.ReadFull(f, b)
	switch {
	case err == nil:
		err = fmt.Errorf("it has more than %d bytes", limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return b[:n], nil
	}
	clear(b)
	return nil, cannotRead(f.Name(), err)
}

func cannotRead(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return isle.Errorf(isle.Unavailable, "there is no file %s on the server's machine", path)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return isle.Errorf(isle.Unavailable, "%s leads through a symbolic link, which is not followed", path).WithHint("name the file by its real path")
	}
	return isle.Errorf(isle.Unavailable, "cannot read %s: %w", path, err)
}
