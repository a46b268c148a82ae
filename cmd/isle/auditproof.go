package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/server"
	"isle/internal/store/sqlite"
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// follow reads the server's log, whose key the server says.
func (a *app) follow(ctx context.Context) (r *audit.Remote, key string, err error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	res, err := c.Server.Checkpoint(ctx, connect.NewRequest(&islev1.CheckpointRequest{}))
	if err != nil {
		return nil, "", err
	}
	key = res.Msg.GetKey()
	r, err = audit.Follow(ctx, c.Fetch, key)
	return r, key, err
}

func newAuditProve(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "prove SEQ",
		Short: "Write the proof that an entry is in the log, as JSON",
		Long: `Write the proof that an entry is in the log: the entry, a signed checkpoint and the
Merkle audit path between them. Whoever has the log's key can check it, without the log.`,
		Example: `  isle audit prove 1234 >proof.json
  isle audit verify --proof proof.json --key "$(cat key)"`,
		Args: args(1, 1, "the sequence number of an entry"),
		RunE: func(cmd *cobra.Command, given []string) error {
			seq, err := strconv.ParseUint(given[0], 10, 62)
			if err != nil {
				return usagef("%q is no sequence number", given[0])
			}
			ctx := cmd.Context()
			for deadline := time.Now().Add(settle); ; time.Sleep(settle / 20) {
				log, _, err := a.follow(ctx)
				if err != nil {
					return err
				}
				if seq >= log.Size && time.Now().Before(deadline) {
					continue // checkpoints cover what is durable: an entry that was just written may not be yet
				}
				proof, err := log.Prove(ctx, seq)
				if err != nil {
					return err
				}
				return a.json(proof)
			}
		},
	}
}

// settle is how long an entry may take to be covered by a checkpoint.
const settle = 400 * time.Millisecond

func newAuditKey(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the log's verifier key (c2sp.org/signed-note)",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, key, err := a.follow(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]string{"key": key})
			}
			fmt.Fprintln(a.stdout, key)
			return nil
		},
	}
}

func newAuditAccept(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "accept",
		Short: "Accept the server's log as it is now, whatever was seen of it before",
		Long: `Each command sees that the server's log goes on from what was seen of it last, and
refuses the server where it does not: its state was put back from a backup or made anew,
it is another server, or somebody tampered with the log. This command says that it is
all right: the log as it is now is the one to go on from.`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			c, err := a.existing(ctx)
			if err != nil {
				return err
			}
			res, err := c.Server.Checkpoint(ctx, connect.NewRequest(&islev1.CheckpointRequest{}))
			if err != nil {
				return err
			}
			now, err := audit.ParseCheckpoint(res.Msg.GetNote(), res.Msg.GetKey())
			if err != nil {
				return err
			}
			address, err := serverName(c)
			if err != nil {
				return err
			}
			if err := memory().Accept(audit.Seen{Server: address, Key: res.Msg.GetKey(), Checkpoint: string(now.Note)}); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"key": res.Msg.GetKey(), "size": now.Size, "root": now.Root.String()})
			}
			fmt.Fprintf(a.stdout, "accepted %s with %d entries\n", cleanLine(now.Origin), now.Size)
			return nil
		},
	}
}

func newAuditExport(a *app) *cobra.Command {
	var from, to uint64
	var file string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the log, or a range of it, as a file that proves itself",
		Long: `Write entries as lines of JSON, with a signed checkpoint and the hashes that tie them to
it. "isle audit verify --file" reads it anywhere; docs/audit.md describes it.`,
		Example: `  isle audit export --file audit.jsonl
  isle audit export --from 1000 --to 2000 | xz >part.jsonl.xz`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, key, err := a.follow(cmd.Context())
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("to") {
				to = log.Size
			}
			if file == "" {
				return log.Export(cmd.Context(), key, from, to, a.stdout)
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return isle.Errorf(isle.Unavailable, "cannot write the export: %w", err)
			}
			err = log.Export(cmd.Context(), key, from, to, f)
			return errors.Join(err, f.Close())
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&from, "from", 0, "first sequence number")
	f.Uint64Var(&to, "to", 0, "sequence number to end before (default: all there are)")
	f.StringVar(&file, "file", "", "file to write (default: standard output)")
	return cmd
}

// verifyOptions are what is verified, and against what.
type verifyOptions struct {
	file, proof, key, checkpoint, checkpoints string
	witnesses                                 []string
	from, to                                  uint64
	part                                      bool // from or to were given
}

func newAuditVerify(a *app) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify the log of a state folder, an export or a proof, without a server",
		Long: `Verify a log by itself and against checkpoints: the one that is kept outside the state
folder, those that this user saw last, and one that --checkpoint names. It says which
entry was changed, added, taken out or moved, whether the end is missing, whether each
outcome has its intent, and whether time ever went back. A server may be running.`,
		Example: `  isle audit verify
  isle audit verify --state /backup/isle --checkpoint witness.txt
  isle audit verify --from 1000 --to 2000
  isle audit verify --file audit.jsonl --key "$(cat key)"
  isle audit verify --proof proof.json --key "$(cat key)"`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.part = cmd.Flags().Changed("from") || cmd.Flags().Changed("to")
			if o.file != "" && o.proof != "" {
				return usagef("--file or --proof, not both")
			}
			if o.part && (o.file != "" || o.proof != "") {
				return usagef("--from and --to are for a state folder; a file has the range that it was exported with")
			}
			switch {
			case o.proof != "":
				return a.verifyProof(o)
			case o.file != "":
				return a.verifyFile(o)
			}
			return a.verifyState(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.file, "file", "", "verify this export (- is standard input)")
	f.StringVar(&o.proof, "proof", "", "verify this proof (- is standard input)")
	f.StringVar(&o.key, "key", "", "the log's verifier key, as isle audit key prints it")
	f.StringVar(&o.checkpoint, "checkpoint", "", "file with a checkpoint that the log must agree with")
	f.StringSliceVar(&o.witnesses, "witness", nil, "key of a witness that must have cosigned that checkpoint")
	f.StringVar(&o.checkpoints, "checkpoints", environ("ISLE_CHECKPOINTS", server.DefaultCheckpoints), "folder in which the server keeps its last checkpoint (ISLE_CHECKPOINTS)")
	f.Uint64Var(&o.from, "from", 0, "first sequence number")
	f.Uint64Var(&o.to, "to", 0, "sequence number to end before (default: all there are)")
	return cmd
}

// input opens a file, or standard input for -.
func (a *app) input(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(a.stdin), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, isle.Errorf(isle.NotFound, "cannot read %s: %w", name, err)
	}
	return f, nil
}

func (a *app) verifyProof(o verifyOptions) error {
	f, err := a.input(o.proof)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 2<<20))
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot read %s: %w", o.proof, err)
	}
	p, err := audit.ParseProof(b)
	if err != nil {
		return err
	}
	e, c, err := p.Verify(o.key)
	if err != nil {
		return isle.Errorf(isle.Failed, "%s", api.Flatten(err).Message)
	}
	if a.output == "json" {
		return a.json(map[string]any{"entry": e, "origin": c.Origin, "size": c.Size, "signature_checked": o.key != ""})
	}
	a.showWhole(e)
	fmt.Fprintf(a.stdout, "\nproven: entry %d is in the log %s of %d entries\n", p.Sequence, cleanLine(c.Origin), c.Size)
	if o.key == "" {
		fmt.Fprintln(a.stdout, "the signature was not checked: give the log's key with --key")
	}
	return nil
}

func (a *app) verifyFile(o verifyOptions) error {
	f, err := a.input(o.file)
	if err != nil {
		return err
	}
	defer f.Close()
	header, report, err := audit.VerifyExport(f, o.key)
	if err != nil {
		return err
	}
	note := ""
	if o.key == "" {
		note = "the signature was not checked: give the log's key with --key"
	}
	if o.checkpoint != "" {
		if err := sameCheckpoint(header, o); err != nil {
			return err
		}
	}
	return a.report(o.file, report, note)
}

// sameCheckpoint checks that the export is of the checkpoint that was given.
func sameCheckpoint(h audit.ExportHeader, o verifyOptions) error {
	given, err := readCheckpoint(o)
	if err != nil {
		return err
	}
	c, err := audit.ParseCheckpoint([]byte(h.Checkpoint), "")
	if err != nil {
		return err
	}
	if given.Head != c.Head {
		return isle.Errorf(isle.Failed, "the export is of another checkpoint (%d entries) than %s (%d entries)", c.Size, o.checkpoint, given.Size)
	}
	return nil
}

// readCheckpoint reads the checkpoint that was given, with its witnesses.
func readCheckpoint(o verifyOptions) (audit.Checkpoint, error) {
	b, err := os.ReadFile(o.checkpoint)
	if err != nil {
		return audit.Checkpoint{}, isle.Errorf(isle.NotFound, "cannot read the checkpoint: %w", err)
	}
	c, err := audit.ParseCheckpoint(b, o.key)
	if err != nil {
		return c, err
	}
	signed, err := audit.Cosignatures(b, o.witnesses)
	if err != nil {
		return c, err
	}
	if len(signed) < len(o.witnesses) {
		return c, isle.Errorf(isle.Failed, "%d of %d witnesses have cosigned %s", len(signed), len(o.witnesses), o.checkpoint)
	}
	return c, nil
}

// verifyState verifies the log of a state folder.
func (a *app) verifyState(ctx context.Context, o verifyOptions) error {
	refs, err := a.references(o)
	if err != nil {
		return err
	}
	log, err := sqlite.OpenReader(server.LogPath(a.state))
	if err != nil {
		return err
	}
	defer log.Close()
	var report audit.Report
	if o.part {
		if o.to == 0 {
			if o.to, err = log.Next(ctx); err != nil {
				return err
			}
		}
		report, err = audit.VerifyRange(log.Rows(ctx, o.from, o.to), o.from, o.to, refs, log.Hashes(ctx))
	} else {
		report, err = audit.VerifyRows(log.Rows(ctx, 0, 1<<62), refs)
	}
	if err != nil {
		return err
	}
	if !o.part {
		edited := func(err error) { report.Edited(errors.New(api.Flatten(err).Message)) }
		if err := log.Vouched(ctx, edited); err != nil {
			return err
		}
	}
	note := ""
	if len(refs) == 0 {
		note = "there is no checkpoint from elsewhere to compare with: this says only that the log agrees with itself"
	}
	return a.report(a.state, report, note)
}

// references are the checkpoints that the log of the state folder must agree
// with.
func (a *app) references(o verifyOptions) ([]audit.Reference, error) {
	var refs []audit.Reference
	kept := server.KeptPath(o.checkpoints, a.state)
	c, err := audit.ReadKept(kept)
	switch {
	case err == nil:
		refs = append(refs, audit.Reference{Source: "kept in " + kept, Checkpoint: *c})
	case isle.CodeOf(err) != isle.NotFound:
		return nil, err
	}
	if address, err := filepath.Abs(strings.TrimPrefix(server.SocketPath(a.state), "unix:")); err == nil {
		m := memory()
		seen, err := m.Last(address)
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		if seen != nil {
			if c, err := audit.ParseCheckpoint([]byte(seen.Checkpoint), seen.Key); err == nil {
				refs = append(refs, audit.Reference{Source: "seen by this user (" + m.Path(address) + ")", Checkpoint: c})
			}
		}
	}
	if o.checkpoint != "" {
		c, err := readCheckpoint(o)
		if err != nil {
			return nil, err
		}
		refs = append(refs, audit.Reference{Source: o.checkpoint, Checkpoint: c})
	}
	return refs, nil
}

// report shows what was found. What is wrong makes the command fail.
func (a *app) report(what string, r audit.Report, note string) error {
	if a.output == "json" {
		if r.Findings == nil {
			r.Findings = []audit.Finding{}
		}
		if r.Proven == nil {
			r.Proven = []string{}
		}
		if err := json.NewEncoder(a.stdout).Encode(struct {
			audit.Report
			Note string `json:"note,omitempty"` // what was not compared or checked
		}{r, note}); err != nil {
			return err
		}
	} else {
		for _, f := range r.Findings {
			fmt.Fprintf(a.stdout, "%-10s %s\n", f.Kind, cleanLine(f.Message))
		}
		if r.More > 0 {
			fmt.Fprintf(a.stdout, "and %d more\n", r.More)
		}
		for _, p := range r.Proven {
			fmt.Fprintf(a.stdout, "agrees with the checkpoint %s\n", cleanLine(p))
		}
		if note != "" {
			fmt.Fprintln(a.stdout, note)
		}
	}
	if !r.OK() {
		return isle.Errorf(isle.Failed, "the audit log of %s was tampered with or is damaged: %d findings", what, len(r.Findings)+r.More).
			WithHint("keep a copy of it as it is; docs/audit.md says what each finding means")
	}
	if a.output != "json" {
		fmt.Fprintf(a.stdout, "whole: entries %d to %d, %d actions without an outcome yet\n", r.From, int64(r.To)-1, r.Open)
	}
	return nil
}
