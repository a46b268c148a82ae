package server

import (
	"os"
	"path/filepath"

	"isle/internal/api"
	"isle/internal/driver/local"
)

// Doctor says what the machine has and lacks for a server of this
// configuration. It needs no server, and no root.
func Doctor(cfg Config) []api.Check {
	var out []api.Check
	cfg, err := cfg.withDefaults()
	if err != nil {
		flat := api.Flatten(err)
		out = append(out, api.Check{Name: "isle-init", State: api.CheckMissing, Message: flat.Message, Remedy: flat.Hint})
	} else {
		out = append(out, api.Check{Name: "isle-init", State: api.CheckOK, Message: cfg.Init})
	}
	for _, c := range local.Examine(local.Config{State: cfg.State, Runtime: cfg.Runtime, Runsc: cfg.Runsc, CgroupParent: cfg.Cgroup}) {
		out = append(out, api.Check{Name: c.Name, State: c.State, Message: c.Message, Remedy: c.Remedy})
	}
	return append(out, checkKeyring())
}

// checkKeyring looks for what Debian's releases are signed with.
func checkKeyring() api.Check {
	for _, name := range []string{"debian-archive-keyring.gpg", "debian-archive-keyring.pgp"} {
		path := filepath.Join("/usr/share/keyrings", name)
		if _, err := os.Stat(path); err == nil {
			return api.Check{Name: "keyring", State: api.CheckOK, Message: path}
		}
	}
	return api.Check{
		Name: "keyring", State: api.CheckMissing, Message: "Debian's archive keyring is not there, so no package can be trusted",
		Remedy: "apt-get install debian-archive-keyring",
	}
}
