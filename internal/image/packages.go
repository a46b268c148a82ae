package image

import (
	"context"
	"errors"
	"io/fs"
	"strings"
)

// maxStatus bounds dpkg's record of what is installed, in bytes.
const maxStatus = 64 << 20

// Packages returns the versions of the Debian packages in an image, by name, as
// its own record of them (/var/lib/dpkg/status) has them. An image without that
// has none.
func (s *Store) Packages(ctx context.Context, m Image) (map[string]string, error) {
	paths, err := s.Verify(ctx, m)
	if err != nil {
		return nil, err
	}
	stack, err := OpenStack(paths)
	if err != nil {
		return nil, err
	}
	defer stack.Close()
	b, err := stack.ReadFile("/var/lib/dpkg/status", maxStatus)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, storeError("read the packages of image "+m.Digest().Short(), err)
	}
	return parseStatus(string(b)), nil
}

// parseStatus reads dpkg's record: paragraphs of fields (deb822(5)).
func parseStatus(text string) map[string]string {
	out := map[string]string{}
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		fields := map[string]string{}
		for line := range strings.SplitSeq(paragraph, "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") {
				fields[name] = strings.TrimSpace(value)
			}
		}
		if name := fields["Package"]; name != "" && strings.HasSuffix(fields["Status"], " installed") {
			out[name] = fields["Version"]
		}
	}
	return out
}
