package httpdoor

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"isle"
	"isle/internal/gateway"
	"isle/internal/policy"
)

// masks makes what rewrites a connection's responses; nil where nothing does.
func (p *Protocol) masks(c policy.Connection) (*masking, error) {
	if len(c.Mask) == 0 && len(c.Detect) == 0 {
		return nil, nil
	}
	paths, err := compileMasks(c.Mask)
	if err != nil {
		return nil, err
	}
	detectors, err := gateway.NewDetectors(c.Detect)
	if err != nil {
		return nil, isle.Errorf(isle.Invalid, "connection %s: %w", c.Name, err)
	}
	key := gateway.MaskKey(p.config.MaskKey, c.Name)
	m := &masking{paths: paths, value: func(kind, value string) string { return gateway.Show(kind, value, key) }}
	if detectors.Any() {
		m.detect = func(text string) (string, bool) {
			b := []byte(text)
			found := detectors.Mask(b, '*')
			return string(b), found > 0
		}
	}
	return m, nil
}

// suffixOf marks entity tags of what is masked: by how, so that a copy from
// before the masks were others is not taken for what would be sent now.
func suffixOf(c policy.Connection) string {
	h := sha256.New()
	for _, m := range c.Mask {
		h.Write([]byte(m.Column + "\x00" + m.Show + "\x00"))
	}
	h.Write([]byte(strings.Join(c.Detect, "\x00")))
	return "-isle" + hex.EncodeToString(h.Sum(nil)[:4])
}
