package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle/internal/api"
	v1 "isle/internal/api/isle/v1"
	"isle/internal/identity"
)

// remotely measures one call over TLS beside the same over the socket, with
// both kinds of credential, and with a connection of its own. The server is
// started for it, and listens on loopback.
func remotely(bin string, runs int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "isle-bench-remote-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	local := api.NewClient(filepath.Join(dir, "state", "isle.sock"))
	defer local.Close()
	info, stop, err := listening(ctx, bin, dir, local)
	if err != nil {
		return err
	}
	defer stop()
	m, err := local.Identities.CreateIdentity(ctx, connect.NewRequest(&v1.CreateIdentityRequest{
		Name: "ci", Purpose: "measures", Expires: timestamppb.New(time.Now().Add(time.Hour)), Roles: []string{"developer"},
	}))
	if err != nil {
		return err
	}
	access, err := askForToken(ctx, info, m.Msg.GetSecret())
	if err != nil {
		return err
	}
	client := func(credential string) (*api.Client, error) {
		return api.NewRemoteClient(api.Remote{URL: info.GetUrl(), Pin: info.GetPin(), Token: func() (string, error) { return credential, nil }})
	}
	byKey, err := client(m.Msg.GetSecret())
	if err != nil {
		return err
	}
	defer byKey.Close()
	byToken, err := client(access)
	if err != nil {
		return err
	}
	defer byToken.Close()
	// So many calls are one run: one alone is as short as the clock is coarse.
	const times = 50
	calling := func(name string, c *api.Client) contender {
		return contender{name, func(ctx context.Context, _ int) (time.Duration, error) {
			begin := time.Now()
			for range times {
				if _, err := c.Server.Info(ctx, connect.NewRequest(&v1.InfoRequest{})); err != nil {
					return 0, err
				}
			}
			return time.Since(begin) / times, nil
		}}
	}
	return compare(ctx, "A call (the server's information), over a connection that is open", "over the socket", runs, []contender{
		calling("over the socket", local),
		calling("over TLS, by API key", byKey),
		calling("over TLS, by access token", byToken),
		{"over TLS, by API key, with a connection of its own", func(ctx context.Context, _ int) (time.Duration, error) {
			c, err := client(m.Msg.GetSecret())
			if err != nil {
				return 0, err
			}
			defer c.Close()
			begin := time.Now()
			_, err = c.Server.Info(ctx, connect.NewRequest(&v1.InfoRequest{}))
			return time.Since(begin), err
		}},
	})
}

// listening starts a server that listens on loopback, with all that it keeps in
// dir, and says what it says of itself.
func listening(ctx context.Context, bin, dir string, c *api.Client) (*v1.InfoResponse, func(), error) {
	cmd := exec.Command(filepath.Join(bin, "isle"), "--state", filepath.Join(dir, "state"), "server", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "ISLE_CHECKPOINTS="+filepath.Join(dir, "kept"), "ISLE_KEYS="+filepath.Join(dir, "keys"), "XDG_STATE_HOME="+dir)
	said, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, nil, err
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() { // ends with the server
		cmd.Wait()
		close(ended)
	}()
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	for {
		info, err := c.Server.Info(ctx, connect.NewRequest(&v1.InfoRequest{}))
		if err == nil {
			return info.Msg, stop, nil
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(said.Name())
			return nil, nil, fmt.Errorf("isle server: %w\n%s", err, text)
		case <-time.After(10 * time.Millisecond): // and ask again
		}
	}
}

// askForToken gets an access token as any OAuth client does.
func askForToken(ctx context.Context, info *v1.InfoResponse, secret string) (string, error) {
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		if got := api.PinOf(s.PeerCertificates[0]); got != info.GetPin() {
			return fmt.Errorf("the server has the key %s", got)
		}
		return nil
	}}}
	defer t.CloseIdleConnections()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"ci"}, "client_secret": {secret}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, info.GetUrl()+identity.TokenPath, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var got identity.TokenResponse
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK || got.AccessToken == "" {
		return "", fmt.Errorf("no token is given: %s", res.Status)
	}
	return got.AccessToken, nil
}
