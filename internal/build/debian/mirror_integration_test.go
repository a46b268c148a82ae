package debian

import (
	"context"
	"testing"
	"time"
)

func TestTry(t *testing.T) {
	a, err := New(Config{Dir: "/tmp/xzb/cache"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := time.Now()
		pk, l, err := a.Resolve(context.Background(), "bookworm", []string{"postgresql-15", "python3", "python3-psycopg2"}, ResolveOptions{}, func(m string) { t.Log(m) })
		t.Log(time.Since(s), len(pk), l, err)
		var sz int64
		for _, p := range pk {
			sz += p.Size
			t.Log(p.Name, p.Version, p.Repository, p.Size)
		}
		t.Log(sz)
	}
	for _, r := range []string{"postgres", "pyhton3", "python3=9", "mail-transport-agent", "redis"} {
		_, _, err := a.Resolve(context.Background(), "bookworm", []string{r}, ResolveOptions{}, nil)
		t.Log(r, err)
	}
}
