package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestABuildsSecretsAreGivenAndInNothingThatIsWritten(t *testing.T) {
	environ := func(s *Source) {
		s.Environ = func(name string) (string, bool) { return "canary-" + name, name == "TOKEN" }
	}
	c := good(t, map[string]string{
		"compose.yaml": `
services:
  my_web:
    build:
      context: .
      secrets: [file, {source: variable, target: token, mode: 0400}, dotenv]
secrets:
  file: {file: sub/key.txt}
  variable: {environment: TOKEN}
  dotenv: {environment: LOCAL}
  unused: {file: ../not/read}
`, "sub/key.txt": "canary-file\n", ".env": "LOCAL=canary-local\n", "Dockerfile": "FROM scratch\n",
	}, environ)
	var got []string
	for _, s := range c.Secrets {
		got = append(got, s.Service+" "+s.ID+" "+s.From+" "+string(s.Value))
	}
	if want := []string{"my-web file file sub/key.txt canary-file\n", "my-web token environment TOKEN canary-TOKEN", "my-web dotenv environment LOCAL canary-local"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if strings.Contains(string(c.YAML), "canary") || strings.Contains(string(c.Commented()), "canary") {
		t.Errorf("it is written:\n%s", c.Commented())
	}
	wantNote(t, c, Differs, 0, "variables", "taken from your environment: TOKEN")
	wantNote(t, c, Dropped, 6, "build.secrets.mode", "RUN --mount=type=secret,mode=")
}

func TestASecretOfElsewhereIsNotRead(t *testing.T) {
	for secret, want := range map[string]string{
		"{file: ../secret}":   "is outside of the project's folder",
		"{file: /etc/shadow}": "is outside of the project's folder",
		"{file: link}":        "--secret id=x,src=FILE",
		"{file: none}":        "--secret id=x,src=FILE",
		"{environment: NONE}": "there is no variable",
		"{external: true}":    "isle secret set NAME",
	} {
		c, err := convert(t, map[string]string{
			"compose.yaml": "services: {web: {build: {context: ., secrets: [x]}}}\nsecrets: {x: " + secret + "}\n", "../secret": "canary", "Dockerfile": "FROM scratch\n",
		}, func(s *Source) {
			if err := os.Symlink(filepath.Join(s.Dir, "../secret"), filepath.Join(s.Dir, "link")); err != nil {
				t.Fatal(err)
			}
		})
		if err != nil || c.Err() == nil || !strings.Contains(c.Err().Error(), want) || len(c.Secrets) != 0 {
			t.Errorf("%s: %v, %v, %v", secret, err, c.Err(), c.Secrets)
		}
	}
	for _, list := range []string{"[gone]", "[x, x]", "[{target: y}]"} {
		c, err := convert(t, map[string]string{"compose.yaml": "services: {web: {build: {context: ., secrets: " + list + "}}}\nsecrets: {x: {file: f}}\n", "f": "1", "Dockerfile": "FROM scratch\n"})
		if err != nil || c.Err() == nil {
			t.Errorf("%s is taken: %v", list, err)
		}
	}
}
