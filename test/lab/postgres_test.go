package lab

import (
	"os/exec"
	"strconv"
	"testing"
)

func TestAPostgresOfItsOwnAsksForAPasswordOverTheNetwork(t *testing.T) {
	pg := Postgres(t)
	pg.Must(t, "postgres", "create role app login password 'right'; create table t as select 1 as x")
	if got := pg.Must(t, "postgres", "select x from t"); got != "1" {
		t.Errorf("got %q", got)
	}
	for password, want := range map[string]bool{"right": true, "wrong": false} {
		cmd := exec.Command("psql", "-X", "-c", "select 1", "host=127.0.0.1 dbname=postgres user=app sslmode=require port="+strconv.Itoa(pg.Port))
		cmd.Env = append(cmd.Environ(), "PGPASSWORD="+password)
		if out, err := cmd.CombinedOutput(); (err == nil) != want {
			t.Errorf("%s: %v: %s", password, err, out)
		}
	}
}
