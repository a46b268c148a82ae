package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"isle"
)

// Bounds of Docker's configuration and of what its helpers say.
const (
	maxDockerConfig = 4 << 20
	maxHelper       = 64 << 10
	helperTimeout   = 30 * time.Second
)

// dockerConfig is the part of Docker's config.json that is about registries.
type dockerConfig struct {
	Auths map[string]struct {
		Auth          string `json:"auth"` // base64 of USER:PASSWORD
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// DockerConfig is the folder of Docker's configuration: DOCKER_CONFIG, else
// .docker in the home folder.
func DockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker")
}

// FromDocker is what Docker's configuration in a folder has for a registry: from
// a helper, a store or the file itself. Without any it is NotFound. A helper gets
// the registry's name on standard input, and its answer is not written anywhere.
func FromDocker(ctx context.Context, dir, registry string) (Credential, error) {
	none := isle.Errorf(isle.NotFound, "there is no login for the registry %s in %s", registry, filepath.Join(dir, "config.json")).
		WithHint("log in: docker login %s", registry)
	b, err := readBounded(filepath.Join(dir, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Credential{}, none
	} else if err != nil {
		return Credential{}, isle.Errorf(isle.Invalid, "Docker's configuration cannot be read: %w", err)
	}
	var c dockerConfig
	if err := json.Unmarshal(b, &c); err != nil {
		// Not the error: it may quote what it could not read.
		return Credential{}, isle.Errorf(isle.Invalid, "Docker's configuration %s cannot be read: it is not JSON of that kind", filepath.Join(dir, "config.json"))
	}
	keys := []string{registry, "https://" + registry, "https://" + registry + "/v1/", "https://" + registry + "/v2/"}
	if registry == name.DefaultRegistry {
		keys = append(keys, strings.TrimPrefix(registry, "index."))
	}
	helper := c.CredsStore
	for _, k := range keys {
		if h := c.CredHelpers[k]; h != "" {
			helper = h
		}
	}
	if helper != "" {
		for _, k := range keys {
			got, err := askHelper(ctx, helper, k)
			if err == nil || isle.CodeOf(err) != isle.NotFound {
				return got, err
			}
		}
	}
	for _, k := range keys {
		a, ok := c.Auths[k]
		if !ok {
			continue
		}
		got := Credential{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}
		if plain, err := base64.StdEncoding.DecodeString(a.Auth); err == nil && a.Auth != "" {
			got.Username, got.Password, _ = strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		}
		if got.Password != "" || got.IdentityToken != "" {
			return got, nil
		}
	}
	return Credential{}, none
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDockerConfig+1))
	if err == nil && len(b) > maxDockerConfig {
		err = errors.New("it is too large")
	}
	return b, err
}

// askHelper asks a credential helper of Docker's (docker-credential-NAME get).
func askHelper(ctx context.Context, helper, registry string) (Credential, error) {
	if strings.ContainsAny(helper, "/\\ ") || strings.HasPrefix(helper, "-") {
		return Credential{}, isle.Errorf(isle.Invalid, "%.100q is no name of a credential helper", helper)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, "get")
	cmd.Stdin = strings.NewReader(registry)
	var out bounded
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return Credential{}, isle.Errorf(isle.Unavailable, "Docker's configuration names the credential helper docker-credential-%s, which is not installed", helper)
	}
	if ctx.Err() != nil {
		return Credential{}, isle.Errorf(isle.Unavailable, "the credential helper docker-credential-%s does not answer", helper)
	}
	if err != nil { // the protocol says no more than that
		return Credential{}, isle.Errorf(isle.NotFound, "the credential helper docker-credential-%s has nothing for %s", helper, registry)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.b.Bytes(), &answer) != nil || answer.Secret == "" {
		return Credential{}, isle.Errorf(isle.Invalid, "the credential helper docker-credential-%s answers with something else than a credential", helper)
	}
	if answer.Username == "<token>" {
		return Credential{IdentityToken: answer.Secret}, nil
	}
	return Credential{Username: answer.Username, Password: answer.Secret}, nil
}

// A bounded buffer takes no more than a helper may say.
type bounded struct{ b bytes.Buffer }

func (w *bounded) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > maxHelper {
		return 0, errors.New("it says too much")
	}
	return w.b.Write(p)
}
