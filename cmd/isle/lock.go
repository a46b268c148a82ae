package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

func newLock(a *app) *cobra.Command {
	var update bool
	var mirror string
	var profiles []string
	cmd := &cobra.Command{
		Use:   "lock [DIR|FILE]",
		Short: "Pin every input by hash, in isle.lock",
		Long: `Pin every input of a file by hash: Debian packages with what they depend on, copied
files, run steps. Packages that are pinned stay as they are until --update. Commit
isle.lock: from the same lock come the same images, on any machine.`,
		Example: `  isle lock
  isle lock --update              choose the newest packages again
  isle lock export shop.tar       everything the lock names, for a machine without a mirror
  isle lock import shop.tar`,
		Args: args(0, 1, "at most one folder or file"),
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := readProject(first(given), profiles...)
			if err != nil {
				return err
			}
			a.tell(p)
			h, err := p.hash(cmd.Context())
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			show := a.newProgress()
			defer show.close()
			for {
				res, need, err := lockOnce(cmd.Context(), c, &islev1.LockRequest{Source: h.source, Update: update, Mirror: mirror}, show)
				if err != nil {
					return err
				}
				if res != nil {
					show.close()
					return a.showLock(p, res)
				}
				if err := p.meet(cmd.Context(), c, h, need, show); err != nil {
					return err
				}
				h.source.Credentials = p.credentials
			}
		},
	}
	addProfiles(cmd, &profiles)
	cmd.Flags().BoolVar(&update, "update", false, "choose the newest packages again")
	cmd.Flags().StringVar(&mirror, "mirror", "", "base URL of the Debian mirror (default: the server's)")
	cmd.AddCommand(newLockExport(a), newLockImport(a))
	return cmd
}

// lockOnce makes one call: it returns a result, or what the server needs first.
func lockOnce(ctx context.Context, c *api.Client, req *islev1.LockRequest, show *progress) (*islev1.LockResult, *islev1.Need, error) {
	stream, err := c.Images.Lock(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, nil, err
	}
	m, err := conclusion(stream, false, show)
	return m.GetResult(), m.GetNeed(), err
}

func (a *app) showLock(p *project, res *islev1.LockResult) error {
	if err := p.writeLock(res.GetLock()); err != nil {
		return err
	}
	changes := res.GetChanges()
	if a.output == "json" {
		if changes == nil {
			changes = []string{}
		}
		return a.json(struct {
			Lock    string   `json:"lock"`
			Changed bool     `json:"changed"`
			Changes []string `json:"changes"`
		}{p.lockPath, res.GetChanged(), changes})
	}
	for _, c := range changes {
		fmt.Fprintf(a.stdout, "  %s\n", clean(c))
	}
	if res.GetChanged() {
		fmt.Fprintf(a.stdout, "%s is written\n", p.lockPath)
	} else {
		fmt.Fprintf(a.stdout, "%s is up to date\n", p.lockPath)
	}
	return nil
}

func newLockExport(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write all that a lock names, packages included, as one tar file",
		Args:  args(1, 1, "one file to write"),
		RunE: func(cmd *cobra.Command, given []string) (err error) {
			p, err := readProject(dir)
			if err != nil {
				return err
			}
			if p.lock == nil {
				return isle.Errorf(isle.NotFound, "there is no %s", p.lockPath).WithHint("make it with `isle lock`, and fill the store with `isle build`")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			f, err := os.CreateTemp(filepath.Dir(given[0]), "."+filepath.Base(given[0])+".*")
			if err != nil {
				return isle.Errorf(isle.Unavailable, "cannot write %s: %w", given[0], cause(err))
			}
			defer func() {
				f.Close()
				if err != nil {
					os.Remove(f.Name())
				}
			}()
			stream, err := c.Images.Export(cmd.Context(), connect.NewRequest(&islev1.ExportRequest{Lock: p.lock}))
			if err != nil {
				return err
			}
			defer stream.Close()
			var size int64
			for stream.Receive() {
				n, err := f.Write(stream.Msg().GetData())
				if size += int64(n); err != nil {
					return isle.Errorf(isle.Exhausted, "cannot write %s: %w", given[0], cause(err))
				}
			}
			if err := stream.Err(); err != nil {
				return err
			}
			if err := errors.Join(f.Chmod(0o644), f.Sync(), os.Rename(f.Name(), given[0])); err != nil {
				return isle.Errorf(isle.Exhausted, "cannot write %s: %w", given[0], err)
			}
			if a.output == "json" {
				return a.json(map[string]any{"file": given[0], "size": size})
			}
			fmt.Fprintf(a.stdout, "%s has %s; read it elsewhere with: isle lock import %s\n", given[0], bytesText(size), given[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder or file whose lock is exported (default: the current folder's)")
	return cmd
}

func newLockImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Read what `isle lock export` wrote into the store",
		Args:  args(1, 1, "one file to read"),
		RunE: func(cmd *cobra.Command, given []string) error {
			res, err := sendGiven(cmd.Context(), a, given[0], func(c *api.Client) *connect.ClientStreamForClient[islev1.Chunk, islev1.ImportResponse] {
				return c.Images.Import(cmd.Context())
			})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"packages": res.GetPackages(), "size": res.GetSize()})
			}
			fmt.Fprintf(a.stdout, "%d packages, %s\n", res.GetPackages(), bytesText(res.GetSize()))
			return nil
		},
	}
}
