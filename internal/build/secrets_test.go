package build

import (
	"strings"
	"testing"

	"isle/internal/conceal"
)

func TestASecretIsHiddenWhereverAStepsOutputIsCut(t *testing.T) {
	const secret = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END KEY-----\n"
	forms := conceal.Of(concealed([]byte(secret))...)
	long := strings.Repeat("x", 3*maxLine)
	for cut := range 64 {
		for _, text := range []string{"a\n" + secret + "b", long[:2*maxLine-cut] + "MIIEvQIBADANBgkqhkiG" + long, "MIIEvQIBADANBgkqhkiG"} {
			var out strings.Builder
			l := &lines{say: func(e Event) { out.WriteString(e.Message) }, hide: forms}
			for piece := range strings.SplitSeq(text, "x") {
				l.Write([]byte(piece))
				l.Write([]byte("x"))
			}
			l.flush()
			if strings.Contains(out.String(), "MIIEvQ") || !strings.Contains(out.String(), "****") || out.Len() != len(strings.ReplaceAll(text, "\n", ""))+1 {
				t.Fatalf("cut %d: %d bytes of %d, with %q", cut, out.Len(), len(text), out.String()[max(0, out.Len()-200):])
			}
		}
	}
}
