package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// branchesLimit is how long `isle gc --branches` reads the repository's branches.
const branchesLimit = 30 * time.Second

type branchesJSON struct {
	DryRun         bool              `json:"dry_run"`
	DeletedVolumes bool              `json:"deleted_volumes"`
	Environments   []environmentJSON `json:"environments"`
}

// collectBranches tears down the environments of a project whose branches are
// gone from the repository that they were brought up from.
func (a *app) collectBranches(ctx context.Context, o gcOptions, arg string) error {
	p, err := readProject(arg)
	if err != nil {
		return err
	}
	if p.noGit != nil {
		return p.noGit
	}
	if p.checkout == nil {
		return isle.Errorf(isle.NotFound, "%s is in no git work tree, so there are no branches that could be gone", p.dir).
			WithHint("run it in the work tree that the environments are from, or name them: isle down ENV…")
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	over, err := p.over(ctx, c, o.stage)
	if err != nil {
		return err
	}
	volumes, err := a.mayDelete(ctx, c, o, over)
	if err != nil {
		return err
	}
	if !o.dryRun && len(over) > 0 {
		req := &islev1.DownRequest{Volumes: volumes}
		for _, e := range over {
			req.Environments = append(req.Environments, environmentRef(e).String())
		}
		show := a.newProgress()
		err = down(ctx, c, show, req)
		show.close()
		if err != nil {
			return err
		}
	}
	return a.showOver(p, o, over, volumes)
}

// over are the project's environments in a stage that were brought up from this
// repository, on a branch that it has no more.
func (p *project) over(ctx context.Context, c *api.Client, stage string) ([]*islev1.Environment, error) {
	list, err := c.Environments.List(ctx, connect.NewRequest(&islev1.ListRequest{}))
	if err != nil {
		return nil, err
	}
	repository := p.checkout.Repository()
	ours := slices.DeleteFunc(list.Msg.GetEnvironments(), func(e *islev1.Environment) bool {
		return e.GetBranch() == "" || e.GetProject() != p.file.Name || e.GetRepository() != repository || e.GetStage() != stage
	})
	var names []string
	for _, e := range ours {
		names = append(names, e.GetBranch())
	}
	ctx, cancel := context.WithTimeout(ctx, branchesLimit)
	defer cancel()
	gone, err := p.checkout.Gone(ctx, names)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ours, func(e *islev1.Environment) bool { return !slices.Contains(gone, e.GetBranch()) }), nil
}

// mayDelete reports whether volumes are to be deleted too: with --volumes, and
// after a question that names them, unless --yes has answered it.
func (a *app) mayDelete(ctx context.Context, c *api.Client, o gcOptions, over []*islev1.Environment) (bool, error) {
	var lost []string
	for i, e := range over {
		res, err := c.Environments.Get(ctx, connect.NewRequest(&islev1.GetRequest{Environment: environmentRef(e).String()}))
		if err != nil {
			return false, err
		}
		over[i] = res.Msg.GetEnvironment()
		for _, v := range over[i].GetVolumes() {
			lost = append(lost, fmt.Sprintf("  %s  %s:%s  %s", refText(e), v.GetService(), v.GetPath(), bytesText(v.GetUsed())))
		}
	}
	if !o.volumes || o.dryRun || o.yes || len(lost) == 0 {
		return o.volumes, nil
	}
	if !a.typed() {
		return false, usagef("--volumes deletes data, and nobody is there to be asked").WithHint("look first with --dry-run, then say --yes; without --volumes they are kept")
	}
	fmt.Fprintf(a.stderr, "These volumes would be deleted for good:\n%s\n", clean(strings.Join(lost, "\n")))
	return true, a.askYes(ctx, "Delete them? [y/N] ", "nothing was torn down and nothing deleted")
}

// showOver says what was torn down, or would be.
func (a *app) showOver(p *project, o gcOptions, over []*islev1.Environment, volumes bool) error {
	if a.output == "json" {
		out := branchesJSON{o.dryRun, volumes && !o.dryRun, []environmentJSON{}}
		for _, e := range over {
			out.Environments = append(out.Environments, environmentView(e))
		}
		return a.json(out)
	}
	if len(over) == 0 {
		fmt.Fprintf(a.stdout, "nothing to do: no environment of %s in %s is of a branch that is gone\n", p.file.Name, o.stage)
		return nil
	}
	verb := "ended"
	if o.dryRun {
		verb = "would end"
	}
	var kept []string
	for _, e := range over {
		data := ""
		switch {
		case len(e.GetVolumes()) == 0:
		case volumes:
			data = " with its volumes"
		default:
			kept = append(kept, refText(e))
		}
		fmt.Fprintf(a.stdout, "%s %s%s: branch %s is gone\n", verb, refText(e), data, cleanLine(e.GetBranch()))
	}
	if len(kept) > 0 {
		fmt.Fprintf(a.stdout, "  volumes are kept; delete them with: isle down %s --volumes\n", strings.Join(kept, " "))
	}
	return nil
}
