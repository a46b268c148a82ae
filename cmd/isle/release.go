package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newRelease(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Seal what was built, to launch exactly that anywhere",
		Long: `A release is the images of a project's services with what its file says, sealed and signed.
It is named by the digest of all that, by at least six characters that begin it, or by a
stage that points at it, PROJECT@STAGE: equal inputs give an equal release. isle up --release launches it. docs/releases.md has more.`,
		Example: `  isle release create
  isle release ls
  isle up --release 3fa9c1 --stage production`,
		Args: args(0, 0, "a command: create, ls, inspect, verify, attestation, export, import, stages, clear, rm or trust"),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newReleaseCreate(a), newReleaseLs(a), newReleaseInspect(a), newReleaseVerify(a), newReleaseAttestation(a), newReleaseExport(a), newReleaseImport(a), newReleaseStages(a), newReleaseClear(a), newReleaseKeep(a), newReleaseRm(a), newReleaseTrust(a))
	return cmd
}

type releaseJSON struct {
	Digest       string             `json:"digest"`
	Project      string             `json:"project"`
	Created      *time.Time         `json:"created"`
	Author       string             `json:"author"`
	Branch       string             `json:"branch,omitempty"`
	Commit       string             `json:"commit,omitempty"`
	Clean        bool               `json:"clean"` // the files were known to be the commit's
	Isolation    string             `json:"isolation"`
	Stages       []string           `json:"stages"` // that point at it
	Images       []releaseImageJSON `json:"images"`
	Doors        []string           `json:"doors"`
	Attestations []attestationJSON  `json:"attestations"`
	Signer       string             `json:"signer"`
	Trusted      bool               `json:"trusted"`
	Imported     bool               `json:"imported"`
	Keep         *time.Time         `json:"keep,omitempty"` // until when somebody keeps it
	Broken       string             `json:"broken,omitempty"`
}

type releaseImageJSON struct {
	Service string `json:"service"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
}

type attestationJSON struct {
	Kind   string     `json:"kind"`
	Digest string     `json:"digest"`
	Added  *time.Time `json:"added"`
	Commit string     `json:"commit,omitempty"`
	Clean  bool       `json:"clean"`
}

func releaseView(r *islev1.Release) releaseJSON {
	out := releaseJSON{
		Digest: r.GetDigest(), Project: r.GetProject(), Created: at(r.GetCreated()), Author: r.GetAuthor(), Branch: r.GetBranch(), Commit: r.GetCommit(),
		Clean: r.GetCommit() != "" && !r.GetDirty(), Isolation: r.GetIsolation(), Images: []releaseImageJSON{}, Doors: r.GetDoors(), Attestations: []attestationJSON{},
		Signer: r.GetSigner(), Trusted: r.GetTrusted(), Imported: r.GetImported(), Keep: at(r.GetKeep()), Broken: r.GetBroken(),
	}
	if out.Doors == nil {
		out.Doors = []string{}
	}
	if out.Stages = r.GetStages(); out.Stages == nil {
		out.Stages = []string{}
	}
	for _, i := range r.GetImages() {
		out.Images = append(out.Images, releaseImageJSON{i.GetService(), i.GetDigest(), i.GetSize()})
	}
	for _, t := range r.GetAttestations() {
		out.Attestations = append(out.Attestations, attestationJSON{t.GetKind(), t.GetDigest(), at(t.GetAdded()), t.GetCommit(), t.GetCommit() != "" && !t.GetDirty()})
	}
	return out
}

// source says in a few words what a release was made of.
func (r releaseJSON) source() string {
	switch {
	case r.Commit == "":
		return "no commit"
	case !r.Clean:
		return r.Commit[:min(len(r.Commit), 10)] + " dirty"
	}
	return r.Commit[:min(len(r.Commit), 10)]
}

// trust says in a word what is to be thought of it.
func (r releaseJSON) trust() string {
	switch {
	case r.Broken != "":
		return "BROKEN"
	case r.Trusted:
		return "trusted"
	}
	return "unknown"
}

func newReleaseCreate(a *app) *cobra.Command {
	req := &islev1.CreateReleaseRequest{}
	var profiles, secrets []string
	cmd := &cobra.Command{
		Use:   "create [DIR|FILE]",
		Short: "Build what isle.lock pins, and seal a release of it",
		Long: `Build what isle.lock pins, and seal a release of it with its provenance and its bill of
materials. The same files give the same release, on any machine: where it is there
already only where it comes from is added. A lock that does not fit the file is refused.`,
		Args: args(0, 1, "at most one folder or file"),
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := readProject(first(given), profiles...)
			if err != nil {
				return err
			}
			if p.secrets, err = parseSecrets(secrets); err != nil {
				return err
			}
			a.tell(p)
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			res, err := createRelease(cmd.Context(), c, p, req, show)
			show.close()
			if err != nil {
				return err
			}
			r := releaseView(res.GetRelease())
			if a.output == "json" {
				return a.json(struct {
					Release releaseJSON `json:"release"`
					Made    bool        `json:"made"`
				}{r, res.GetMade()})
			}
			word := "is sealed"
			if !res.GetMade() {
				word = "is there already"
			}
			fmt.Fprintf(a.stdout, "release %s of %s %s: %s\n", shortDigest(r.Digest), clean(r.Project), word, clean(r.source()))
			if !r.Clean {
				fmt.Fprintln(a.stdout, "  its files are not known to be a commit's, and its provenance says so")
			}
			_, err = fmt.Fprintf(a.stdout, "  next: isle up --release %s · isle release inspect %s\n", shortDigest(r.Digest), shortDigest(r.Digest))
			return err
		},
	}
	cmd.Flags().StringVar(&req.Mirror, "mirror", "", "base URL of the Debian mirror (default: the server's)")
	addProfiles(cmd, &profiles)
	addSecrets(cmd, &secrets)
	return cmd
}

// createRelease makes a release of what is on disk.
func createRelease(ctx context.Context, c *api.Client, p *project, req *islev1.CreateReleaseRequest, show *progress) (*islev1.CreateReleaseResult, error) {
	if p.noGit != nil {
		return nil, p.noGit
	}
	for range 4 {
		if c := p.checkout; c != nil {
			req.Branch, req.Commit, req.Repository, req.Dirty = c.Branch, c.Commit, c.Repository(), p.dirty(ctx, show)
		}
		h, err := p.hash(ctx)
		if err != nil {
			return nil, err
		}
		req.Source = h.source
		if req.Source.Secrets, err = p.secretValues(); err != nil {
			return nil, err
		}
		res, err := createReleaseOnce(ctx, c, req, show)
		if err != nil || res != nil {
			return res, err
		}
		if err := h.send(ctx, c, show); err != nil {
			return nil, err
		}
	}
	return nil, isle.Errorf(isle.Conflict, "the files go on changing while they are sent").WithHint("run `isle release create` again when they are at rest")
}

// createReleaseOnce makes one call: it returns a result, or nil where the server
// needs files first.
func createReleaseOnce(ctx context.Context, c *api.Client, req *islev1.CreateReleaseRequest, show *progress) (*islev1.CreateReleaseResult, error) {
	stream, err := c.Releases.CreateRelease(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *islev1.CreateReleaseEvent_Progress:
			show.event(e.Progress)
		case *islev1.CreateReleaseEvent_Need:
			return nil, nil
		case *islev1.CreateReleaseEvent_Result:
			return e.Result, nil
		}
	}
	return nil, ended(stream.Err())
}

func newReleaseLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls [PROJECT]",
		Short: "List releases, the first one first",
		Args:  args(0, 1, "at most one project"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Releases.ListReleases(cmd.Context(), connect.NewRequest(&islev1.ListReleasesRequest{Project: first(given)}))
			if err != nil {
				return err
			}
			return showList(a, res.Msg.GetReleases(), releaseView, "release\tproject\tfrom\tstages\tmade\tsigned\tby", func(m *islev1.Release) []string {
				r := releaseView(m)
				return []string{shortDigest(r.Digest), r.Project, r.source(), strings.Join(r.Stages, ", "), ago(r.Created), r.trust(), r.Author}
			})
		},
	}
}

func newReleaseInspect(a *app) *cobra.Command {
	var manifest bool
	cmd := &cobra.Command{
		Use:   "inspect RELEASE",
		Short: "Tell all of one release",
		Args:  args(1, 1, "one release"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Releases.GetRelease(cmd.Context(), connect.NewRequest(&islev1.GetReleaseRequest{Release: given[0]}))
			if err != nil {
				return err
			}
			if manifest {
				_, err := a.stdout.Write(res.Msg.GetRelease().GetManifest())
				return err
			}
			r := releaseView(res.Msg.GetRelease())
			if a.output == "json" {
				return a.json(r)
			}
			return a.describeRelease(r)
		},
	}
	cmd.Flags().BoolVar(&manifest, "manifest", false, "write the bytes that the digest is of")
	return cmd
}

// describeRelease writes a release for people.
func (a *app) describeRelease(r releaseJSON) error {
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(a.stdout, "%-12s%s\n", key, cleanLine(value))
		}
	}
	line("release", r.Digest)
	line("project", fmt.Sprintf("%s, isolation %s", r.Project, r.Isolation))
	from := r.source()
	if r.Branch != "" {
		from += ", branch " + r.Branch
	}
	line("from", from)
	if r.Created != nil {
		word := "made"
		if r.Imported {
			word = "imported"
		}
		line(word, fmt.Sprintf("%s by %s", r.Created.Local().Format("2006-01-02 15:04:05"), r.Author))
	}
	if r.Signer != "" {
		signed := "by " + r.Signer
		if !r.Trusted {
			signed += ", which this server does not trust: it is not launched"
		}
		line("signed", signed)
	}
	for _, i := range r.Images {
		line("image", fmt.Sprintf("%s, %s, %s", i.Service, i.Digest, bytesText(i.Size)))
	}
	line("stages", strings.Join(r.Stages, ", "))
	line("doors", strings.Join(r.Doors, ", "))
	for _, t := range r.Attestations {
		line(t.Kind, t.Digest)
	}
	line("BROKEN", r.Broken)
	return nil
}

func newReleaseRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm RELEASE...",
		Short: "Remove releases that nothing runs",
		Args:  args(1, -1, "one release or more"),
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed := []string{}
			for _, name := range given {
				res, rerr := c.Releases.RemoveRelease(cmd.Context(), connect.NewRequest(&islev1.RemoveReleaseRequest{Release: name}))
				if err = rerr; err != nil {
					break
				}
				removed = append(removed, res.Msg.GetDigest())
			}
			if a.output == "json" {
				if jerr := a.json(removed); err == nil {
					err = jerr
				}
				return err
			}
			for _, d := range removed {
				fmt.Fprintf(a.stdout, "release %s is removed\n", shortDigest(d))
			}
			return err
		},
	}
}
