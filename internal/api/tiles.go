package api

import (
	"compress/gzip"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"isle"
	"isle/internal/audit"
)

// Tree is the audit log as a Merkle tree.
type Tree interface {
	// Head is that of the entries that are durable. Nothing beyond is served.
	Head() audit.Head
	// Hashes reads the tree's hashes.
	Hashes(ctx context.Context) tlog.HashReader
	// Encoded returns the canonical encodings of up to limit entries from a
	// sequence number on; there are no more if it returns fewer.
	Encoded(ctx context.Context, from uint64, limit int) ([][]byte, error)
}

// NewTiles returns the handler that serves a log as c2sp.org/tlog-tiles says,
// to whoever asks. New puts the same behind Authorize.
func NewTiles(log Tree, signer *audit.Signer, logger *slog.Logger) http.Handler {
	return tilesMux(&tiles{log, signer, logger, func(context.Context, bool) error { return nil }})
}

func tilesMux(t *tiles) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /"+audit.CheckpointPath, t.checkpoint)
	mux.HandleFunc("GET /tile/", t.tile)
	return mux
}

// tiles serves a log.
type tiles struct {
	log    Tree
	signer *audit.Signer
	slog   *slog.Logger
	// may says whether the caller may read the log; entries says that what is
	// asked for shows what is in it.
	may func(ctx context.Context, entries bool) error
}

// Caching of what changes with each entry, and of what never changes
// (RFC 9111, RFC 8246).
const (
	cacheCheckpoint = "no-cache"
	cacheTile       = "max-age=31536000, immutable"
)

func (t *tiles) checkpoint(w http.ResponseWriter, r *http.Request) {
	if !t.allowed(w, r, false) {
		return
	}
	c, err := t.signer.Sign(t.log.Head())
	if err != nil {
		t.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", cacheCheckpoint)
	w.Write(c.Note)
}

func (t *tiles) tile(w http.ResponseWriter, r *http.Request) {
	tile, err := audit.ParseTile(strings.TrimPrefix(r.URL.EscapedPath(), "/"))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if !t.allowed(w, r, tile.Level == audit.Entries) {
		return
	}
	if !tile.In(t.log.Head().Size) {
		w.Header().Set("Cache-Control", "no-store") // it may come
		http.NotFound(w, r)
		return
	}
	var b []byte
	if tile.Level == audit.Entries {
		var entries [][]byte
		if entries, err = t.log.Encoded(r.Context(), tile.Index*audit.TileWidth, tile.Width); err == nil {
			b, err = audit.Bundle(entries)
		}
	} else {
		b, err = tile.Data(t.log.Hashes(r.Context()))
	}
	if err != nil {
		t.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", cacheTile)
	if tile.Level != audit.Entries { // hashes do not compress
		w.Write(b)
		return
	}
	h.Set("Vary", "Accept-Encoding")
	if !acceptsGzip(r) {
		w.Write(b)
		return
	}
	h.Set("Content-Encoding", "gzip")
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	z.Write(b)
	z.Close()
}

func acceptsGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, quality, _ := strings.Cut(strings.TrimSpace(part), ";")
		if coding == "gzip" && strings.ReplaceAll(quality, " ", "") != "q=0" {
			return true
		}
	}
	return false
}

// allowed asks whether the caller may, and answers if not.
func (t *tiles) allowed(w http.ResponseWriter, r *http.Request, entries bool) bool {
	err := t.may(r.Context(), entries)
	if err == nil {
		return true
	}
	t.fail(w, r, err)
	return false
}

func (t *tiles) fail(w http.ResponseWriter, r *http.Request, err error) {
	flat, status := Flatten(err), http.StatusInternalServerError
	switch flat.Code {
	case isle.Refused:
		status = http.StatusForbidden
	case isle.Unavailable, isle.Exhausted:
		status = http.StatusServiceUnavailable
	default:
		t.slog.Error("the audit log cannot be served", "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, flat.Error(), status)
}

// readEvery is how often an actor's reading of entry bundles is recorded: a
// follower reads hundreds, and would otherwise make as many to read.
const readEvery = time.Minute

// maxReaders bounds how many actors are remembered for that.
const maxReaders = 1000

// A reading remembers who was recorded as reading the log, and when.
type reading struct {
	mu   sync.Mutex
	last map[isle.Actor]time.Time
}

// record writes down that an actor reads the log, unless that was written a
// moment ago. Nothing is read before it is written down: who comes while it is
// being written waits, and where it cannot be the next one tries again.
func (r *reading) record(a isle.Actor, now time.Time, write func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.last[a]; ok && now.Sub(at) < readEvery {
		return nil
	}
	if err := write(); err != nil {
		return err
	}
	if r.last == nil || len(r.last) >= maxReaders {
		r.last = map[isle.Actor]time.Time{}
	}
	r.last[a] = now
	return nil
}
