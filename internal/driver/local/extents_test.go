package local

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"isle"
	"isle/internal/environment"
)

func TestWhatIsSharedIsNotClonedAgain(t *testing.T) {
	disk := func(logical, physical, length uint64, flags uint32) extent {
		return extent{logical: logical, physical: physical, length: length, flags: flags}
	}
	whole := []extent{disk(0, 1000, 100, 0), disk(100, 1100, 100, extentLast)}
	for name, c := range map[string]struct {
		a, b []extent
		want []span
	}{
		"nothing in either":        {nil, nil, nil},
		"the same, cut otherwise":  {whole, []extent{disk(0, 1000, 200, extentLast)}, nil},
		"elsewhere":                {whole, []extent{disk(0, 5000, 200, 0)}, []span{{0, 200}}},
		"a piece elsewhere":        {[]extent{disk(0, 1000, 50, 0), disk(50, 7000, 10, 0), disk(60, 1060, 140, 0)}, whole, []span{{50, 60}}},
		"a hole in the source":     {[]extent{disk(100, 1100, 100, 0)}, whole, []span{{0, 100}}},
		"a hole in the clone":      {whole, []extent{disk(0, 1000, 100, 0)}, []span{{100, 200}}},
		"more than there was":      {append(slices.Clone(whole), disk(250, 9000, 50, 0)), whole, []span{{250, 300}}},
		"unwritten is like a hole": {append(slices.Clone(whole), disk(250, 9000, 50, extentUnwritten)), whole, nil},
		"written since":            {whole, []extent{disk(0, 1000, 100, extentUnwritten), disk(100, 1100, 100, 0)}, []span{{0, 100}}},
		"nobody knows where":       {[]extent{disk(0, 1000, 100, 0), disk(100, 1100, 100, 0x4)}, whole, []span{{100, 200}}},
	} {
		if got := differing(c.a, c.b, 300); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, not %v", name, got, c.want)
		}
	}
}

// While everything stands still the clone and its source are compared byte by
// byte, of a volume that is written to at random places all the time.
func TestACloneIsItsSourceByteByByte(t *testing.T) {
	install(t, "mke2fs", "mkfs.xfs", "mkfs.btrfs")
	for name, kinds := range map[string][]storeKind{"xfs": storeKinds()[:1], "btrfs": storeKinds()[1:], "copies": nil} {
		t.Run(name, func(t *testing.T) {
			b := storeBench(t, kinds...)
			from := b.volume(48 << 20)
			l := b.launchOf(isle.NewID(), "scribble /data/file")
			l.Volumes = []environment.Mount{{Volume: from, Path: "/data"}}
			b.up(&l)
			b.report(l)
			var to isle.ID
			compared := 0
			b.given.Fault = func(point string) {
				if point != "capture.cloned" {
					return
				}
				compared++
				source, err := os.ReadFile(b.volumes.Path(from))
				if err != nil {
					t.Error(err)
				}
				clone, err := os.ReadFile(b.volumes.Path(to) + ".new")
				if err != nil {
					t.Error(err)
				}
				if !bytes.Equal(source, clone) {
					t.Error("they differ")
				}
			}
			for range 8 {
				to = isle.NewID()
				c := environment.Capture{Instance: l.Instance, Volumes: []environment.Clone{{From: from, To: to}}}
				if _, err := b.Capture(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				b.sound(to)
			}
			if compared != 8 {
				t.Errorf("%d were compared", compared)
			}
		})
	}
}
