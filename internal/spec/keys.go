package spec

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Bounds on what one file can hold and ask for.
const (
	maxServices = 64
	maxPorts    = 64
	maxPackages = 512
	maxCopies   = 64
	maxRuns     = 64
	maxArgs     = 1024
	maxEnv      = 256
	maxVolumes  = 16
	maxTmpfs    = 32
	maxEgress   = 64
	maxNetworks = 16
	maxUses     = 64
	maxSchema   = 1_000_000_000

	minVolume = 8 << 20
	// A writable root is in memory.
	minWritable = 1 << 20
	maxWritable = 1 << 40
	maxVolume   = 16 << 40
	minMemory   = 8 << 20
	maxMemory   = 4 << 40
	minCPUs     = 0.05
	maxCPUs     = 1024
	minPIDs     = 32
	maxPIDs     = 1 << 20
)

// shell is what runs a command that is written as one string.
var shell = []string{"/bin/sh", "-c"}

// written are the types of a scalar that is taken as it is written.
var written = []string{"string", "number", "boolean"}

// text is a scalar with a pattern for the schema.
func text(words, pattern string, parse func(string) (string, error)) shape[string] {
	return scalar(words, schema{Type: "string", Pattern: pattern}, parse)
}

func numeric(words, article string, least, most int) shape[int] {
	return scalar(article, schema{Type: "integer", Minimum: new(float64(least)), Maximum: new(float64(most))}, parseInt(words, least, most))
}

func sizeShape(least, most int64) shape[int64] {
	return scalar("a size", schema{AnyOf: []*schema{
		{Type: "integer", Minimum: new(float64(least)), Maximum: new(float64(most))},
		{Type: "string", Pattern: sizePattern},
	}}, parseSize(least, most))
}

func durationShape(least, most time.Duration) shape[time.Duration] {
	return scalar("a duration", schema{Type: "string", Pattern: durationPattern}, parseDuration(least, most))
}

// choice is one of a few words; notYet are words that will come, with the
// reason why they do not work.
func choice(notYet map[string]string, words ...string) shape[string] {
	return scalar(strings.Join(words, " or "), schema{Type: "string", Enum: words}, func(s string) (string, error) {
		if slices.Contains(words, s) {
			return s, nil
		}
		if why, ok := notYet[s]; ok {
			return "", fmt.Errorf("%s", why)
		}
		best, _ := nearest(s, words)
		return "", fmt.Errorf("%q is not one of %s; did you mean %q?", clip(s), strings.Join(words, ", "), best)
	})
}

// commandShape is a list of arguments, or a string for the shell.
func commandShape() shape[[]string] {
	words := "a command"
	line := scalar(words, schema{Type: "string", MinLength: 1}, func(s string) ([]string, error) {
		s, err := parseCommandText(s)
		return append(slices.Clone(shell), s), err
	})
	args := list(words, maxArgs, scalar("an argument", schema{Type: written}, parseText))
	checked := args
	checked.schema = &schema{Type: "array", Items: args.schema.Items, MinItems: 1, MaxItems: maxArgs}
	checked.read = func(r *reader, n *yaml.Node, into *[]string) {
		before := len(r.Problems())
		args.read(r, n, into)
		if len(r.Problems()) == before && (len(*into) == 0 || (*into)[0] == "") {
			r.Problem(n, "names no command; want a program and its arguments, as in [python3, app.py], or remove the key")
		}
	}
	return scalarOr("a command", line, checked)
}

// someArgs is a list of arguments that has one.
func someArgs() shape[[]string] {
	args := list("a list of arguments", maxArgs, scalar("an argument", schema{Type: written}, parseText))
	args.schema.MinItems = 1
	inner := args.read
	args.read = func(r *reader, n *yaml.Node, into *[]string) {
		before := len(r.Problems())
		if inner(r, n, into); len(r.Problems()) == before && len(*into) == 0 {
			r.Problem(n, "names no argument; want some, or remove the key: an image without a command of its own has none")
		}
	}
	return args
}

// fileShape is the table of an environment file's keys: what the parser takes,
// what the schema allows and what the reference lists.
func fileShape() shape[File] {
	return object("an environment file",
		must(key("name", "", "The project. Environments are named after it.", text("a name", namePattern, parseName), func(f *File) *string { return &f.Name })),
		key("isolation", "container", "How services are kept apart from the machine: `container` is namespaces, a user namespace, seccomp and cgroups; `gvisor` is a kernel of the environment's own, in user space, for code that nobody has read: it costs a start of a fraction of a second, some tens of MiB and a multiple for each system call (docs/security.md, docs/performance.md). An environment of `isle run` is of `gvisor` where the file names no class.",
			choice(nil, "container", "gvisor"), func(f *File) *string { return &f.Isolation }),
		must(key("services", "", "The services, by name. They share one network, as in a pod: each reaches the others on localhost.",
			mapOf("services by name", maxServices, schema{Pattern: namePattern}, nameError, serviceShape(), func(name string, s Service) Service { s.Name = name; return s }),
			func(f *File) *[]Service { return &f.Services })),
		key("egress", "", "What the environment asks to reach outside, by name. Anything else is refused and recorded.",
			list("a list of destinations", maxEgress, egressShape()), func(f *File) *[]Egress { return &f.Egress }),
		key("uses", "", "Connections that the environment asks for, each found inside under its own name: `psql -h orders-db`. The policy says what they are and who may; nothing of a credential is inside.",
			list("a list of connections", maxUses, text("a connection", namePattern, parseUse)), func(f *File) *[]string { return &f.Uses }),
		key("uses_as", "", "Other names for connections of `uses`, by connection: `{orders-db-staging: orders-db}` has `psql -h orders-db` lead to orders-db-staging. Values of a stage that put a connection in another's place do this by themselves.",
			usesAsShape(), func(f *File) *map[string]string { return &f.UsesAs }),
		key("limits", "{}", "What the environment as a whole may use.", limitsShape(), func(f *File) *Limits { return &f.Limits }),
		key("ttl", "", "How long the environment lives; its volumes stay seven days longer. Without it there is no end.",
			durationShape(time.Second, 3650*24*time.Hour), func(f *File) *time.Duration { return &f.TTL }),
		key("warm", "false", "Whether the state in which the environment is ready is kept, memory and volumes, and the next one of exactly the same release begins with it, in place of a start (class `gvisor`; docs/forks.md). It is a copy: `on_fork` runs in it, and services are called SERVICE-NAME by their hostname.",
			scalar("true or false", schema{Type: "boolean"}, parseBool), func(f *File) *bool { return &f.Warm }),
		key("schema", "", "What the release makes of its data: a rollback to a release that cannot use it is refused (docs/releases.md).",
			pointer(schemaShape()), func(f *File) **DataSchema { return &f.Schema }),
		key("stages", "", "What a release asks of the stages that it is promoted to, beside what they ask of releases by the policy (docs/releases.md).",
			pointer(stagesShape()), func(f *File) **Stages { return &f.Stages }),
	)
}

func usesAsShape() shape[map[string]string] {
	return textsBy("names by connection", maxUses, schema{Pattern: namePattern}, nameError, text("a name inside", namePattern, parseUse))
}

func schemaShape() shape[DataSchema] {
	s := object("a schema",
		must(key("version", "", "A number that grows with each change of how data is kept.", numeric("version", "a number", 1, maxSchema), func(s *DataSchema) *int { return &s.Version })),
		key("compatible_with", "", "The least version whose releases can use data that this one has written. Without it, its own version.",
			numeric("version", "a number", 0, maxSchema), func(s *DataSchema) *int { return &s.CompatibleWith }),
	)
	inner := s.read
	s.read = func(r *reader, n *yaml.Node, into *DataSchema) {
		into.CompatibleWith = -1
		if inner(r, n, into); into.CompatibleWith < 0 {
			into.CompatibleWith = into.Version
		}
	}
	return s
}

func serviceShape() shape[Service] {
	packages := list("a list of packages", maxPackages, text("a Debian package", packagePattern, parsePackage))
	runs := list("a list of shell commands", maxRuns, scalar("a shell command", schema{Type: "string", MinLength: 1}, parseCommandText))
	run := scalar("a shell command", schema{Type: "string", MinLength: 1}, func(s string) ([]string, error) {
		s, err := parseCommandText(s)
		return []string{s}, err
	})
	env := textsBy("variables by name", maxEnv, schema{Pattern: envPattern}, envError, scalar("a text", schema{Type: written}, parseText))
	return object("a service",
		key("image", "", "An image to begin with, in place of packages: `registry.example/team/app:1` from a registry, `localhost/app:1` of this server (`isle image ls`), or `./app.tar`, an OCI layout or what docker save wrote, in the project folder. `isle lock` pins it by digest. What the file leaves open, command, user, workdir and variables, is as the image says.",
			text("an image", "", parseImage), func(s *Service) *string { return &s.Image }),
		key("build", "", "A Dockerfile that makes the image, in place of packages: the folder that it is in, or more about it. Its steps have no network unless `network` says so (docs/dockerfile.md). What the file leaves open is as the image says.",
			pointer(buildShape()), func(s *Service) **Build { return &s.Build }),
		key("suite", "bookworm", "The Debian release its packages come from.", text("a suite", suitePattern, parseSuite), func(s *Service) *string { return &s.Suite }),
		key("packages", "", "Debian packages, by name or name=version. `isle lock` pins them and what they depend on by hash; they are unpacked without maintainer scripts, so programs may need their full path (/usr/lib/postgresql/15/bin/postgres) and nothing is started by itself.",
			packages, func(s *Service) *[]string { return &s.Packages }),
		key("copy", "", "Files of the project folder that go into the image, in this order. What .isleignore names stays out.",
			list("a list of copies", maxCopies, copyShape()), func(s *Service) *[]Copy { return &s.Copy }),
		key("run", "", "Shell commands run at build time after copying, as root, each with /bin/sh -c: sealed, without network unless `network` says so. What they write becomes part of the image.",
			scalarOr("a list of shell commands", run, runs), func(s *Service) *[]string { return &s.Run }),
		key("network", "none", "What the steps of `build` and `run` reach: nothing, or with `record` HTTP and HTTPS of the internet, each answer kept and pinned in isle.lock. The next build is answered the same, without a network (docs/dockerfile.md).",
			convert(choice(nil, "none", NetworkRecord), func(s string) string {
				if s == "none" {
					return ""
				}
				return s
			}), func(s *Service) *string { return &s.Network }),
		key("user", "", "Who the command runs as: a name of the image's /etc/passwd, uid or uid:gid. Without it, root of the environment's own user namespace, which is nobody on the machine.",
			scalar("a user", schema{AnyOf: []*schema{{Type: "string", Pattern: userPattern}, {Type: "integer", Minimum: new(0.0), Maximum: new(float64(maxUID))}}}, parseUser), func(s *Service) *string { return &s.User }),
		key("workdir", "", "The folder that commands start in. Without it, /.", text("a path", absolutePattern, parsePath), func(s *Service) *string { return &s.Workdir }),
		key("env", "", "Environment variables. Numbers and booleans are taken as they are written. No secrets here: the file is code. SPIFFE_ENDPOINT_SOCKET, which names the socket of the service's identity, is there already.",
			env, func(s *Service) *map[string]string { return &s.Env }),
		key("volumes", "", "Folders that can be written and outlive the service, by path. `user` owns them. They are not shared between services.",
			mapOf("volumes by path", maxVolumes, schema{Pattern: absolutePattern}, mountError, volumeShape(), func(p string, v Volume) Volume { v.Path = p; return v }),
			func(s *Service) *[]Volume { return &s.Volumes }),
		key("tmpfs", "", "Folders in memory that can be written and do not outlive a launch. /tmp, /run and /dev/shm are there already.",
			list("a list of paths", maxTmpfs, text("a path", absolutePattern, parseMountPath)), func(s *Service) *[]string { return &s.Tmpfs }),
		key("writable", "", "How much the service may write to its root, for images that can't do without: what it writes is in memory, counts as memory, and is gone with the launch. Without it the root is read-only. Name volumes and tmpfs where you can; `isle status` shows which services have it.",
			sizeShape(minWritable, maxWritable), func(s *Service) *int64 { return &s.Writable }),
		key("setup", "", "A command run once, before `command`, while the volumes are empty, as `user`. A string is run with /bin/sh -c.",
			commandShape(), func(s *Service) *[]string { return &s.Setup }),
		key("command", "", "What the service runs. A list is a program and its arguments; a string is run with /bin/sh -c. Without it, the service idles and waits for `isle exec`.",
			commandShape(), func(s *Service) *[]string { return &s.Command }),
		key("args", "", "Arguments for the entrypoint of the `image` or `build`, in place of the image's own: what Docker calls a command. `command` stands for the entrypoint too.",
			someArgs(), func(s *Service) *[]string { return &s.Args }),
		key("on_fork", "", "A command run in each fork of the environment, as `user`, beside `command` once every service is up: to draw new random seeds and keys, and to mask data. Until it has ended with code 0 the fork is shut: it reaches nothing and nothing reaches it. It may be run again if the server ends meanwhile. A string is run with /bin/sh -c.",
			commandShape(), func(s *Service) *[]string { return &s.OnFork }),
		key("healthcheck", "", "When the service is ready, and whether it still is.", pointer(healthShape()), func(s *Service) **Healthcheck { return &s.Healthcheck }),
		key("depends_on", "", "Services that must be healthy, or have started if they have no healthcheck, before this one starts.",
			list("a list of services", maxServices, text("a service", namePattern, parseName)), func(s *Service) *[]string { return &s.DependsOn }),
		key("ports", "", "Ports to publish, by name: each is reached on a stable 127.0.0.1:PORT of the machine, and through `isle port-forward`.",
			mapOf("ports by name", maxPorts, schema{Pattern: namePattern}, nameError, numeric("port", "a port", 1, 65535), func(name string, n int) Port { return Port{name, n} }),
			func(s *Service) *[]Port { return &s.Ports }),
		key("restart", "no", "Whether a command that ended is started again: `on-failure` after an exit code other than 0, `always` after any.",
			choice(nil, "no", "on-failure", "always"), func(s *Service) *string { return &s.Restart }),
		key("caps", "", "Linux capabilities to keep, with or without CAP_. None unless named, and never any over the machine.",
			list("a list of capabilities", len(capabilities), scalar("a capability", schema{Type: "string", Pattern: `^(CAP_|cap_)?[A-Za-z_]+$`}, parseCap)), func(s *Service) *[]string { return &s.Caps }),
	)
}

func copyShape() shape[Copy] {
	return object("a copy",
		must(key("from", "", "A file or folder, relative to isle.yaml and never outside its folder. A trailing slash says that it must be a folder.",
			text("a relative path", "", parseFrom), func(c *Copy) *string { return &c.From })),
		must(key("to", "", "Where it goes: the file, or the folder whose content is added, gets this absolute path.",
			text("a path", absolutePattern, parseOpenPath), func(c *Copy) *string { return &c.To })),
	)
}

func volumeShape() shape[Volume] {
	return object("a volume",
		key("size", "1GiB", "How much it can hold. It takes up what is written, not its size.", sizeShape(minVolume, maxVolume), func(v *Volume) *int64 { return &v.Size }),
	)
}

func healthShape() shape[Healthcheck] {
	h := object("a healthcheck",
		key("tcp", "", "A port on 127.0.0.1 that accepts connections.", numeric("port", "a port", 1, 65535), func(h *Healthcheck) *int { return &h.TCP }),
		key("http", "", "A URL on localhost that answers 2xx or 3xx.", text("a URL", `^http://(localhost|127\.0\.0\.1)([:/]|$)`, parseHTTP), func(h *Healthcheck) *string { return &h.HTTP }),
		key("command", "", "A command that exits 0. A string is run with /bin/sh -c.", commandShape(), func(h *Healthcheck) *[]string { return &h.Command }),
		key("interval", "5s", "From one probe to the next, once healthy.", durationShape(100*time.Millisecond, time.Hour), func(h *Healthcheck) *time.Duration { return &h.Interval }),
		key("timeout", "5s", "How long one probe may take.", durationShape(10*time.Millisecond, 10*time.Minute), func(h *Healthcheck) *time.Duration { return &h.Timeout }),
		key("start", "60s", "How long it may take to become healthy.", durationShape(100*time.Millisecond, 24*time.Hour), func(h *Healthcheck) *time.Duration { return &h.Start }),
		key("retries", "3", "How many failures in a row make it unhealthy.", numeric("number of failures", "a number", 1, 100), func(h *Healthcheck) *int { return &h.Retries }),
	)
	inner := h.read
	h.read = func(r *reader, n *yaml.Node, into *Healthcheck) {
		before := len(r.Problems())
		inner(r, n, into)
		kinds := 0
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if k := n.Content[i].Value; k == "tcp" || k == "http" || k == "command" {
				kinds++
			}
		}
		if len(r.Problems()) == before && kinds != 1 {
			r.Problem(n, "names %d ways to ask; want exactly one of tcp, http and command", kinds)
		}
	}
	for _, k := range []string{"tcp", "http", "command"} {
		h.schema.OneOf = append(h.schema.OneOf, &schema{Required: []string{k}})
	}
	return h
}

func egressShape() shape[Egress] {
	line := scalar("host:port", schema{Type: "string", Pattern: egressPattern}, parseEgress)
	full := object("a destination",
		must(key("host", "", "A DNS name or an IPv4 address. No wildcards.", text("a host", `^[A-Za-z0-9.-]+$`, parseHost), func(e *Egress) *string { return &e.Host })),
		must(key("port", "", "A TCP port.", numeric("port", "a port", 1, 65535), func(e *Egress) *int { return &e.Port })),
		key("addresses", "", "Private, loopback or link-local networks (CIDR) that the name may resolve to. Without them only public addresses are dialed.",
			list("a list of networks", maxNetworks, text("a network", `^[0-9a-fA-F.:]+(/[0-9]{1,3})?$`, parseNetwork)), func(e *Egress) *[]string { return &e.Addresses }),
		key("inspect", "false", "Whether the gateway opens TLS to this host, so that policy and approvals speak of requests, and recordings have them. What is sent and answered then passes the server in the clear; docs/gateway-http.md says what that means.",
			scalar("true or false", schema{Type: "boolean"}, parseBool), func(e *Egress) *bool { return &e.Inspect }),
	)
	return scalarOr("host:port or a destination", line, full)
}

func limitsShape() shape[Limits] {
	return object("limits",
		key("cpus", "2", "CPUs' worth of time.", scalar("a number", schema{Type: "number", Minimum: new(minCPUs), Maximum: new(float64(maxCPUs))}, parseCPUs), func(l *Limits) *float64 { return &l.CPUs }),
		key("memory", "2GiB", "Memory, with page cache and tmpfs. Of the class `gvisor` its kernel takes a part: at least 32 MiB, and 16 MiB more for each service, are needed.", sizeShape(minMemory, maxMemory), func(l *Limits) *int64 { return &l.Memory }),
		key("pids", "1024", "Processes and threads. Each service's own isle-init takes about fifteen.", numeric("number of processes", "a number", minPIDs, maxPIDs), func(l *Limits) *int { return &l.PIDs }),
	)
}

func mountError(s string) error {
	_, err := parseMountPath(s)
	return err
}

// convert reads an A and makes a B of it.
func convert[A, B any](s shape[A], f func(A) B) shape[B] {
	return shape[B]{words: s.words, schema: s.schema, keys: s.keys, read: func(r *reader, n *yaml.Node, into *B) {
		var a A
		s.read(r, n, &a)
		*into = f(a)
	}}
}

// pointer reads a T that may be missing.
func pointer[T any](s shape[T]) shape[*T] {
	return convert(s, func(v T) *T { return &v })
}
