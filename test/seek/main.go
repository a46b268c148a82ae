// Command seek looks for a secret in everything that is inside an environment:
// the files of its services, as they see them, and the environment, the
// arguments and the readable memory of each of its processes. It looks from
// outside, as root, so it sees more than anything inside could, and puts
// nothing inside that it would then find.
//
//	isle status shop -o json              # has the instance
//	go run ./test/seek INSTANCE WORD <secret
//
// The secret comes over standard input, and is looked for as it is, in Base64
// and in hexadecimal. WORD is something that is known to be inside, looked for
// in the same way: a search that does not find it says nothing. It exits with 1
// if the secret is found, or the word is not.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "seek:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 || args[0] == "" || args[1] == "" {
		return errors.New("want the instance of an environment and a word that is inside; the secret over standard input")
	}
	secret, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	secret = bytes.TrimRight(secret, "\n")
	if len(secret) < 8 {
		return errors.New("a secret of fewer than 8 bytes is found anywhere")
	}
	pids, err := inside(args[0])
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fmt.Errorf("no process is in %s", args[0])
	}
	s := search{secret: forms(secret), word: []byte(args[1])}
	for _, pid := range pids {
		if err := s.process(pid); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "searched: %d files (%d MiB), and the environment, arguments and memory (%d MiB) of %d processes\n",
		s.files, s.fileBytes>>20, s.memoryBytes>>20, s.processes)
	fmt.Fprintf(out, "found:    the secret in %d places; %q, looked for in the same way, in %d\n", len(s.found), args[1], s.words)
	for _, place := range s.found {
		fmt.Fprintln(out, "          the secret is in", place)
	}
	switch {
	case len(s.found) > 0:
		return errors.New("the secret is inside")
	case s.words == 0:
		return fmt.Errorf("%q was not found either, so the search says nothing", args[1])
	}
	return nil
}

// forms returns how a secret is looked for. Base64 ends a byte or two before the
// secret does where what follows would change it.
func forms(secret []byte) [][]byte {
	plain := base64.StdEncoding.EncodeToString(secret[:len(secret)/3*3])
	return [][]byte{secret, []byte(plain), []byte(hex.EncodeToString(secret))}
}

// inside returns the processes of an instance: those in its control group.
func inside(instance string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(groups)) {
			if strings.Contains(strings.TrimSpace(line)+"/", "/"+instance+"/") {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}

// search is one search and what it came to.
type search struct {
	secret [][]byte
	word   []byte
	roots  map[string]bool // mount namespaces whose files were looked at

	files, processes       int
	fileBytes, memoryBytes int64
	found                  []string
	words                  int
}

// process looks at one process, and at the files it sees. One that ends
// meanwhile has nothing left to be found.
func (s *search) process(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	mounts, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
	if err != nil {
		return nil
	}
	s.processes++
	for _, name := range []string{"environ", "cmdline"} {
		if f, err := os.Open(filepath.Join(dir, name)); err == nil {
			s.read(f, fmt.Sprintf("%s of process %d", name, pid))
			f.Close()
		}
	}
	if err := s.memory(pid); err != nil {
		return err
	}
	if s.roots == nil {
		s.roots = map[string]bool{}
	}
	if s.roots[mounts] {
		return nil
	}
	s.roots[mounts] = true
	return s.tree(filepath.Join(dir, "root"))
}

// memory looks at what a process has mapped and could read itself.
func (s *search) memory(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		return nil
	}
	mem, err := os.Open(filepath.Join(dir, "mem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("memory of process %d: %w", pid, err)
	}
	defer mem.Close()
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to int64
		var mode string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); n != 3 || mode[0] != 'r' {
			continue
		}
		n := s.read(io.NewSectionReader(mem, from, to-from), fmt.Sprintf("memory of process %d, %s", pid, lines.Text()))
		s.memoryBytes += n
	}
	return lines.Err()
}

// tree looks at all regular files below root but those that the kernel makes up.
func (s *search) tree(root string) error {
	// The root of a process is a link, which would be looked at and not followed.
	return filepath.WalkDir(root+"/.", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // it is gone, or the process is
		case d.IsDir() && (path == filepath.Join(root, "proc") || path == filepath.Join(root, "sys")):
			return filepath.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		// What is mounted over a file is not what its folder says: /dev/full has no end.
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return nil
		}
		s.files++
		s.fileBytes += s.read(f, "the file "+strings.TrimPrefix(path, root))
		return nil
	})
}

// read looks through r and returns how many bytes it could read. What begins in
// one block and ends in the next is found: blocks overlap.
func (s *search) read(r io.Reader, place string) int64 {
	longest := len(s.word)
	for _, f := range s.secret {
		longest = max(longest, len(f))
	}
	buf := make([]byte, 1<<20)
	var total int64
	kept, secret, word := 0, false, false
	for {
		n, err := io.ReadFull(r, buf[kept:])
		total += int64(n)
		block := buf[:kept+n]
		for _, f := range s.secret {
			secret = secret || bytes.Contains(block, f)
		}
		word = word || bytes.Contains(block, s.word)
		if err != nil {
			break
		}
		kept = copy(buf, block[len(block)-longest+1:])
	}
	if secret {
		s.found = append(s.found, place)
	}
	if word {
		s.words++
	}
	return total
}
