package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/release"
)

func newHistory(a *app) *cobra.Command {
	req := &islev1.HistoryRequest{}
	var file string
	cmd := &cobra.Command{
		Use:   "history ENV|STAGE|DIGEST",
		Short: "Tell how something was built, where it ran and what it did, from the audit log",
		Long: `Tell what the audit log says of an environment or a stage (NAME@STAGE, or a stage of the
project in this folder), of a release, or of an image: how it was built and from what, who
promoted it and launched it, where it runs and ran, and what was done, refused and found in
it, the last first. Each line names its entry of the log and that entry's hash.

With --prove the lines go into a file with the proof of each entry and the releases that they
name, which isle verify checks without a server.`,
		Example: `  isle history shop@production
  isle history 3fa9c1 --limit 20
  isle history shop@production --prove shop.history
  isle verify shop.history --key "$(isle audit key)" --key isle-releases/…`,
		Args: args(1, 1, "an environment, a stage as NAME@STAGE, or the digest of a release or an image"),
		RunE: func(cmd *cobra.Command, given []string) error {
			req.Of = given[0]
			if p, err := readProject(""); err == nil {
				req.Project = p.file.Name
			}
			req.Prove = file != ""
			if req.Prove && !cmd.Flags().Changed("limit") {
				req.Limit = release.MaxLines
			}
			return a.history(cmd.Context(), req, file)
		},
	}
	cmd.Flags().Int32Var(&req.Limit, "limit", 100, "how many lines, the last ones")
	cmd.Flags().StringVar(&file, "prove", "", "file to write, with the proof of each line")
	return cmd
}

type historyJSON struct {
	Kind     string            `json:"kind"`
	Of       string            `json:"of"`
	Releases []releaseJSON     `json:"releases"`
	Runs     []historyRunJSON  `json:"runs"`
	Lines    []historyLineJSON `json:"lines"`
	More     bool              `json:"more"`
	From     uint64            `json:"from"`
	Size     uint64            `json:"size"`
	Proof    string            `json:"proof,omitempty"` // the file
}

type historyRunJSON struct {
	Environment string     `json:"environment"`
	Instance    string     `json:"instance"`
	Release     string     `json:"release,omitempty"`
	From        *time.Time `json:"from"`
	To          *time.Time `json:"to,omitempty"`
	Began       uint64     `json:"began"` // entries
	Ended       uint64     `json:"ended,omitempty"`
}

type historyLineJSON struct {
	Entry  uint64      `json:"entry"`
	Hash   string      `json:"hash"`
	Says   audit.Entry `json:"says"`
	Intent *intentJSON `json:"intent,omitempty"`
	what   string
}

type intentJSON struct {
	Entry uint64      `json:"entry"`
	Hash  string      `json:"hash"`
	Says  audit.Entry `json:"says"`
}

// history shows what a server tells, or writes it with its proofs.
func (a *app) history(ctx context.Context, req *islev1.HistoryRequest, file string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := c.Releases.History(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	defer stream.Close()
	if !stream.Receive() {
		return ended(stream.Err())
	}
	head := stream.Msg().GetHead()
	var proof *historyFile
	if file != "" {
		if proof, err = newHistoryFile(file, head); err != nil {
			return err
		}
		defer proof.abandon()
	}
	out := historyView(head)
	for stream.Receive() {
		m := stream.Msg()
		if r := m.GetRelease(); r != nil && proof != nil {
			if err := proof.release(r); err != nil {
				return err
			}
		}
		if m.GetLine() == nil {
			continue
		}
		l, err := historyLine(m.GetLine(), proof)
		if err != nil {
			return err
		}
		out.Lines = append(out.Lines, l)
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if proof != nil {
		if err := proof.keep(); err != nil {
			return err
		}
		out.Proof = file
	}
	if a.output == "json" {
		return a.json(out)
	}
	return a.showHistory(out)
}

func historyView(h *islev1.HistoryHead) historyJSON {
	out := historyJSON{Kind: h.GetKind(), Of: h.GetName(), Releases: []releaseJSON{}, Runs: []historyRunJSON{}, Lines: []historyLineJSON{}, More: h.GetCut(), From: h.GetFrom(), Size: h.GetSize()}
	for _, r := range h.GetReleases() {
		out.Releases = append(out.Releases, releaseView(r))
	}
	for _, r := range h.GetRuns() {
		out.Runs = append(out.Runs, historyRunJSON{r.GetEnvironment(), r.GetInstance(), r.GetRelease(), at(r.GetBegan()), at(r.GetEnded()), r.GetBeganEntry(), r.GetEndedEntry()})
	}
	return out
}

// historyLine reads a line: what it says and its hash are taken from the entry's
// own bytes.
func historyLine(m *islev1.HistoryLine, proof *historyFile) (out historyLineJSON, err error) {
	read := func(m *islev1.HistoryEntry) (audit.Entry, string, error) {
		e, err := audit.Decode([]byte(m.GetJson()))
		if err == nil && proof != nil {
			err = proof.entry(m)
		}
		return e, base64.StdEncoding.EncodeToString(leaf(m)), err
	}
	if m.GetIntent() != nil {
		i := &intentJSON{Entry: m.GetIntent().GetSequence()}
		if i.Says, i.Hash, err = read(m.GetIntent()); err != nil {
			return out, err
		}
		out.Intent = i
	}
	out.Entry = m.GetEntry().GetSequence()
	if out.Says, out.Hash, err = read(m.GetEntry()); err != nil {
		return out, err
	}
	out.what = told(out)
	return out, nil
}

func leaf(m *islev1.HistoryEntry) []byte {
	h := tlog.RecordHash([]byte(m.GetJson()))
	return h[:]
}

// told says in a few words what an entry says.
func told(l historyLineJSON) string {
	e, details := l.Says, l.Says.Details
	if l.Intent != nil {
		details = l.Intent.Says.Details
		if e.Summary == "" {
			e.Summary = l.Intent.Says.Summary
		}
	}
	what := string(e.Action)
	if r := e.Resource.String(); r != "environment:"+e.Environment {
		what += " " + r
	}
	if e.Release != "" {
		what += " release " + e.Release.Short()
	}
	for _, k := range []string{"commit", "branch", "before", "replaces", "kind", "service", "gates", "gates_passed_over", "break_glass", "reach_changed"} {
		v := details[k]
		if d := isle.Digest(v); d.Valid() {
			v = d.Short()
		}
		if v != "" {
			what += ", " + strings.ReplaceAll(k, "_", " ") + " " + v
		}
	}
	if details["dirty"] == "true" {
		what += ", not committed"
	}
	if v := isle.Digest(details["from"]); v.Valid() {
		what += ", from release " + v.Short()
	}
	switch {
	case e.Kind == audit.Intent:
		what += ": has not ended"
	case e.Decision != isle.Allow:
		what += ": " + string(e.Decision) + " by " + e.Rule
	case e.Result != audit.OK && e.Result != "":
		what += ": " + e.Result
	}
	if e.Count > 1 {
		what += " ×" + strconv.Itoa(e.Count)
	}
	if e.Summary != "" {
		what += ": " + e.Summary
	}
	return what
}

func (a *app) showHistory(h historyJSON) error {
	w := a.stdout
	fmt.Fprintf(w, "%s %s\n", h.Kind, cleanLine(h.Of))
	for _, r := range h.Releases {
		fmt.Fprintf(w, "  built  release %s of %s, from %s, by %s on %s: %s\n", shortDigest(r.Digest), clean(r.Project), clean(r.source()), clean(r.Author), r.Created.Local().Format(time.DateTime), r.trust())
	}
	for _, r := range h.Runs {
		what := "a file"
		if r.Release != "" {
			what = "release " + shortDigest(r.Release)
		}
		if r.To == nil {
			fmt.Fprintf(w, "  runs   %s in %s since %s (entry %d)\n", what, clean(r.Environment), r.From.Local().Format(time.DateTime), r.Began)
			continue
		}
		fmt.Fprintf(w, "  ran    %s in %s from %s to %s (entries %d, %d)\n", what, clean(r.Environment), r.From.Local().Format(time.DateTime), r.To.Local().Format(time.DateTime), r.Began, r.Ended)
	}
	if h.Proof != "" {
		_, err := fmt.Fprintf(w, "%s has %d lines with their proofs, and %d releases; next: isle verify %s --key \"$(isle audit key)\" --key KEY, which isle release trust shows\n", h.Proof, len(h.Lines), len(h.Releases), h.Proof)
		return err
	}
	rows := make([][]string, len(h.Lines))
	for i, l := range h.Lines {
		rows[i] = []string{strconv.FormatUint(l.Entry, 10), l.Hash[:min(len(l.Hash), 8)], l.Says.Time.Local().Format(time.DateTime), l.Says.Actor.String(), l.what}
	}
	if err := table(w, "entry\thash\twhen\twho\twhat", rows); err != nil {
		return err
	}
	if h.More {
		fmt.Fprintln(w, "there is more: --limit")
	}
	if h.From > 0 {
		fmt.Fprintf(w, "entries before %d were not read: isle audit search has them\n", h.From)
	}
	return nil
}

// A historyFile is a bundle that is being written, whole or not at all.
type historyFile struct {
	path   string
	head   *islev1.HistoryHead
	f      *os.File
	bundle *release.Bundle
	digest isle.Digest // of the release that is coming in
	data   []byte
	done   bool
}

func newHistoryFile(path string, head *islev1.HistoryHead) (*historyFile, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return nil, isle.Errorf(isle.Unavailable, "cannot write %s: %w", path, cause(err))
	}
	h := &historyFile{path: path, head: head, f: f}
	h.bundle, err = release.NewBundle(f, head.GetName(), head.GetKey())
	if err != nil {
		h.abandon()
	}
	return h, err
}

// entry adds a proof, if it is one.
func (h *historyFile) entry(m *islev1.HistoryEntry) error {
	p := audit.Proof{Checkpoint: string(h.head.GetCheckpoint()), Sequence: m.GetSequence(), Entry: m.GetJson(), Path: m.GetPath()}
	if _, _, err := p.Verify(h.head.GetKey()); err != nil {
		return isle.Errorf(isle.Untrusted, "the server's proof of entry %d is none: %w", m.GetSequence(), err)
	}
	return h.bundle.Prove(p)
}

// maxReleaseFile bounds the file of a release without layers, in bytes.
const maxReleaseFile = 256 << 20

// release takes a part of a release's file.
func (h *historyFile) release(m *islev1.HistoryRelease) error {
	if d := isle.Digest(m.GetDigest()); d != h.digest {
		if err := h.flush(); err != nil {
			return err
		}
		h.digest = d
	}
	if h.data = append(h.data, m.GetData()...); len(h.data) > maxReleaseFile {
		return isle.Errorf(isle.Exhausted, "the file of release %s has more than %d bytes", h.digest.Short(), maxReleaseFile)
	}
	return nil
}

func (h *historyFile) flush() error {
	if h.digest == "" {
		return nil
	}
	data := h.data
	h.data = nil
	return h.bundle.Release(h.digest, data)
}

func (h *historyFile) keep() error {
	if err := h.flush(); err != nil {
		return err
	}
	if err := errors.Join(h.bundle.Close(), h.f.Sync(), os.Rename(h.f.Name(), h.path)); err != nil {
		return isle.Errorf(isle.Exhausted, "cannot write %s: %w", h.path, cause(err))
	}
	h.done = true
	return nil
}

// abandon takes away what was not kept.
func (h *historyFile) abandon() {
	h.f.Close()
	if !h.done {
		os.Remove(h.f.Name())
	}
}
