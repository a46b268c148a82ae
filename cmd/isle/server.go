package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/server"
	"isle/internal/spec"
)

func newServer(a *app) *cobra.Command {
	var cfg server.Config
	var level string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the server that runs environments",
		Long: `Run the server. It needs root. Other commands start one by themselves when none
answers; an installed one is run by systemd. Environments outlive it: when it ends or
dies they go on, and the next start takes them up. On SIGHUP it becomes the program
that is installed now, without refusing a connection.

With --listen it serves callers from elsewhere too, over TLS, who prove themselves by
a token: see ` + "`isle login`" + `. Without it nobody but this machine reaches it. With
--gateway it opens connections to them, for unchanged clients: psql with the connection
as dbname and a key or token as the password, https://HOST:PORT/CONNECTION/ with it as
Authorization: Bearer.`,
		Example: `  isle server --state /srv/isle
  isle server --listen :7443 --url https://isle.example.org:7443
  isle server --gateway :6432
  isle server --prepare container=2,gvisor=1
  isle server stop
  isle server reload`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.remote() {
				return usagef("--server %s: a server's own socket is a path; where it listens to others says --listen", clean(a.address))
			}
			cfg.State = a.state
			if a.address != "" {
				cfg.Socket = a.address
			}
			if cfg.WarmCount < 0 {
				return usagef("--warm-count %d: want at least 1", cfg.WarmCount)
			}
			if err := cfg.LogLevel.UnmarshalText([]byte(level)); err != nil {
				return usagef("--log-level %q: want debug, info, warn or error", level)
			}
			if v := os.Getenv("ISLE_PREPARE"); v != "" && !cmd.Flags().Changed("prepare") {
				if err := (&sparesFlag{&cfg.Spares}).Set(v); err != nil {
					return usagef("ISLE_PREPARE: %v", err)
				}
			}
			cfg.Version = version()
			cfg.Fault = os.Getenv("ISLE_FAULT")
			s, err := server.New(cfg)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Names, "names", "", "address that serves HTTP ports by name, or off (default 127.0.0.1:7480)")
	f.StringVar(&cfg.Mirror, "mirror", "", "base URL of the Debian mirror (default: the machine's)")
	f.Var(networksFlag{&cfg.BuildNetworks}, "build-network", "network (CIDR) that is not public and that build steps with the recorded network may reach; may be given again (default: none)")
	f.StringVar(&cfg.Runtime, "runtime", "", "OCI runtime: crun, runc or a path (default: crun, else runc)")
	f.StringVar(&cfg.Init, "init", "", "path of isle-init (default: beside this program)")
	f.StringVar(&cfg.Cgroup, "cgroup", "", "control group to make environments' below (default: one named for the state folder)")
	f.Var(&sparesFlag{&cfg.Spares}, "prepare", "how many sandboxes to keep ready for launches, by isolation, such as container=2,gvisor=1 (ISLE_PREPARE; default: none)")
	f.Var(durationFlag{&cfg.WarmKeep}, "warm-keep", "how long a ready state is kept that nothing begins with, until the next isle gc (default 14d)")
	f.Var(sizeFlag{&cfg.WarmMax}, "warm-max", "bytes that the ready states of one owner may have together (default 4GiB)")
	f.IntVar(&cfg.WarmCount, "warm-count", 0, "how many ready states one owner may have (default 8)")
	f.Var(durationFlag{&cfg.Drain}, "drain", "how long what an instance was asked may take once another release has taken its place (default 30s)")
	f.Var(durationFlag{&cfg.KeepBefore}, "keep-before", "how long an instance is kept, frozen, after another release has taken its place (default 1h)")
	cfg.DriftSample = defaultDriftSample
	f.Var(paceFlag{&cfg.DriftSample}, "drift-sample", "bytes of the layers of what runs of releases to read again in a minute, to find drift, or off (default 64MiB)")
	f.StringVar(&cfg.Log, "log", "", "file to log to, rotated (default: standard error)")
	f.StringVar(&cfg.Group, "group", "", "group whose members may connect (default: isle, if there is one)")
	f.BoolVar(&cfg.DefaultPolicy, "default-policy", false, "replace the policy by the default one: the way back in for who is locked out")
	f.StringVar(&cfg.Checkpoints, "checkpoints", environ("ISLE_CHECKPOINTS", server.DefaultCheckpoints), "folder, outside of the state, that keeps the audit log's last checkpoint (ISLE_CHECKPOINTS)")
	f.BoolVar(&cfg.AcceptRollback, "accept-rollback", false, "serve a state that is older or another than its kept checkpoint, and record that")
	f.StringVar(&cfg.AuditListen, "audit-listen", "", "TCP address at which anybody may follow the audit log (default: none)")
	f.StringVar(&cfg.Keys, "keys", os.Getenv("ISLE_KEYS"), "folder, outside of the state, for the keys that secrets are sealed under (ISLE_KEYS; default "+server.DefaultKeys+")")
	f.BoolVar(&cfg.NewKey, "new-key", false, "give up what the key of before has sealed, where that key is gone")
	f.StringVar(&cfg.TrustDomain, "trust-domain", "", "name of the trust domain that identities are in, at the first start (default: a random one)")
	f.StringArrayVar(&cfg.SecretFiles, "secret-files", nil, "folder below which files may be named as secrets; may be given again (default "+server.DefaultSecretFiles+")")
	f.StringVar(&cfg.Vault.Address, "vault-address", "", "URL of a Vault that secrets may be taken from, by the protocol of KV version 2")
	f.StringVar(&cfg.Vault.TokenFile, "vault-token-file", "", "file with the token for Vault, read each time")
	f.StringVar(&cfg.Vault.CA, "vault-ca", "", "PEM certificates that Vault's must be signed by (default: the machine's)")
	f.StringVar(&cfg.Vault.Namespace, "vault-namespace", "", "namespace in Vault")
	f.Var(durationFlag{&cfg.RecordingsKeep}, "recordings-keep", "how long recordings of sessions are kept, such as 30d; at least a day (default 30d)")
	f.Var(sizeFlag{&cfg.RecordingsMax}, "recordings-max", "bytes that all recordings may have, such as 10GiB; the first ones go first (default 10GiB)")
	f.StringVar(&cfg.Listen, "listen", "", "TCP address that serves callers from elsewhere, such as :7443 (default: none)")
	f.StringVar(&cfg.Gateway, "gateway", os.Getenv("ISLE_GATEWAY"), "TCP address at which connections are opened from outside by PostgreSQL and HTTPS clients, such as :6432 (ISLE_GATEWAY; default: none)")
	f.StringVar(&cfg.TLSCert, "tls-cert", "", "PEM file with the certificate for --listen and --gateway, read again when it changes (default: one of the server's own)")
	f.StringVar(&cfg.TLSKey, "tls-key", "", "PEM file with its key")
	f.StringVar(&cfg.URL, "url", "", "what the server is called from elsewhere (default: https and the address of --listen)")
	f.StringVar(&level, "log-level", slog.LevelInfo.String(), "least level to log: debug, info, warn or error")
	cmd.AddCommand(newServerStop(a), newServerReload(a))
	return cmd
}

// defaultDriftSample is what a disk and a core hardly notice: a GiB in a quarter of
// an hour, some ten milliseconds of a core a second.
const defaultDriftSample = 64 << 20

func newServerStop(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "End the server; environments go on",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := a.here(); err != nil {
				return err
			}
			c, err := a.existing(ctx)
			if isle.CodeOf(err) == isle.NotFound && err != nil {
				return nil // it is what was asked for
			}
			if err != nil {
				return err
			}
			info, err := c.Server.Info(ctx, connect.NewRequest(&islev1.InfoRequest{}))
			if err != nil {
				return err
			}
			pid := int(info.Msg.GetPid())
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return isle.Errorf(isle.Unavailable, "cannot see the server's process %d: %w", pid, err)
			}
			defer unix.Close(pidfd)
			if _, err := c.Server.Stop(ctx, connect.NewRequest(&islev1.StopRequest{})); err != nil {
				return err
			}
			return gone(ctx, pidfd, pid)
		},
	}
}

// gone waits until the process behind a descriptor has ended (pidfd_open(2)): it
// is readable then, though nobody may have waited for the process.
func gone(ctx context.Context, pidfd, pid int) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return isle.Errorf(isle.Internal, "cannot wait for the server (process %d): %w", pid, err)
		}
	}
	return isle.Errorf(isle.Unavailable, "the server (process %d) does not end", pid).WithHint("see its log; kill -9 %d does no harm to environments", pid)
}

func newServerReload(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Make the server the program that is installed now",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := a.here(); err != nil {
				return err
			}
			c, err := a.existing(ctx)
			if err != nil {
				return err
			}
			before, err := c.Server.Info(ctx, connect.NewRequest(&islev1.InfoRequest{}))
			if err != nil {
				return err
			}
			pid := int(before.Msg.GetPid())
			if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
				return isle.Errorf(isle.Refused, "cannot signal the server (process %d): %w", pid, err)
			}
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				// The old one cuts calls off; the new one has another start.
				now, err := c.Server.Info(ctx, connect.NewRequest(&islev1.InfoRequest{}))
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err == nil && !now.Msg.GetStarted().AsTime().Equal(before.Msg.GetStarted().AsTime()) {
					if a.output == "json" {
						return a.json(map[string]any{"pid": now.Msg.GetPid(), "version": now.Msg.GetVersion()})
					}
					fmt.Fprintf(a.stdout, "the server is %s now, process %d as before\n", now.Msg.GetVersion(), now.Msg.GetPid())
					return nil
				}
			}
			return isle.Errorf(isle.Failed, "the server did not become a new one; the old one goes on").WithHint("see its log")
		},
	}
}

// durationFlag is a flag with a duration as isle.yaml writes it.
type durationFlag struct{ to *time.Duration }

func (f durationFlag) String() string { return "" }
func (f durationFlag) Type() string   { return "duration" }
func (f durationFlag) Set(s string) (err error) {
	*f.to, err = spec.ParseDuration(s)
	return err
}

// sparesFlag is a flag with how many sandboxes are kept ready, by isolation.
type sparesFlag struct{ to *map[string]int }

func (f sparesFlag) String() string { return "" }
func (f sparesFlag) Type() string   { return "list" }
func (f sparesFlag) Set(s string) (err error) {
	*f.to, err = server.ParseSpares(s)
	return err
}

// sizeFlag is a flag with bytes as isle.yaml writes them.
type sizeFlag struct{ to *int64 }

func (f sizeFlag) String() string { return "" }
func (f sizeFlag) Type() string   { return "size" }
func (f sizeFlag) Set(s string) (err error) {
	*f.to, err = spec.ParseSize(s)
	return err
}

// paceFlag is a sizeFlag that may be off.
type paceFlag struct{ to *int64 }

func (f paceFlag) String() string { return "" }
func (f paceFlag) Type() string   { return "size" }
func (f paceFlag) Set(s string) (err error) {
	if *f.to = 0; s == "off" {
		return nil
	}
	*f.to, err = spec.ParseSize(s)
	return err
}

// networksFlag is a flag with networks, which may be given again.
type networksFlag struct{ to *[]netip.Prefix }

func (f networksFlag) String() string { return "" }
func (f networksFlag) Type() string   { return "network" }
func (f networksFlag) Set(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is no network: want an address and a length, as 10.1.0.0/16", s)
	}
	*f.to = append(*f.to, p.Masked())
	return nil
}
