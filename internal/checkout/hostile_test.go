package checkout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// A repository is anybody's, and what it costs to look at it is not its to say.

func TestPatternsThatTakeLongEndWithTheTimeThereIs(t *testing.T) {
	r := newRepo(t)
	r.write("file", "x")
	r.commit()
	r.write(".gitignore", strings.Repeat(strings.Repeat("*a", 20)+"b\n", 1000))
	r.write(strings.Repeat("a", 200), "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &scan{c: r.find(""), ctx: ctx}
	if _, err := s.untracked(); !errors.Is(err, context.Canceled) {
		t.Errorf("it goes on: %v", err)
	}
}

func TestPatternsOfManyFoldersTakeABoundedMemory(t *testing.T) {
	r := newRepo(t)
	r.write("file", "x")
	dir := ""
	for i := range 4 {
		r.write(dir+".gitignore", strings.Repeat(fmt.Sprintf("no%d\n", i), maxPatterns/3))
		dir += "d/"
	}
	r.write(dir+"file", "x")
	r.git("add", "-f", ".")
	r.commit()
	if _, err := r.find("").Dirty(t.Context()); err == nil || !strings.Contains(err.Error(), "patterns") {
		t.Errorf("more than %d patterns: %v", maxPatterns, err)
	}
}

func TestPathsOfASmallIndexTakeABoundedMemory(t *testing.T) {
	const count = maxPaths/4000 + 10
	b := binary.BigEndian.AppendUint32([]byte("DIRC"), 4)
	b = binary.BigEndian.AppendUint32(b, count)
	for i := range count {
		b = append(b, make([]byte, fixed+20+2)...)
		name := fmt.Sprintf("%08d", i)
		if i == 0 { // all others have it in common
			b = append(b, 0)
			name = strings.Repeat("d", 4000) + name
		} else {
			b = append(b, 8)
		}
		b = append(append(b, name...), 0)
	}
	b = append(b, make([]byte, 20)...)
	if _, err := parseIndex(b, 20, ""); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("an index of %d bytes: %v", len(b), err)
	}
}
