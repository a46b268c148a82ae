package outside

import (
	"strings"
	"testing"
)

func TestAMachineReadsWithItsKeyAsPsqlsPassword(t *testing.T) {
	key := shared.machine(t, "ci")
	out, err := shared.query("orders-db", key, "select count(*) from orders")
	if err != nil || out != "100" {
		t.Fatalf("%q %v", out, err)
	}
	// The database's name says which connection; who is machine:ci the key says.
	opened := shared.entries(t, "--actor", "machine:ci", "--action", "session:open")
	if len(opened) == 0 || opened[0]["decision"] != "allow" {
		t.Errorf("%v", opened)
	}
	_, err = shared.query("ledger-db", key, "select 1")
	if err == nil || !strings.Contains(err.Error(), "a session is in one stage") {
		t.Errorf("a machine of testing in production: %v", err)
	}
	_, err = shared.query("nothing", key, "select 1")
	if err == nil || !strings.Contains(err.Error(), "there is no connection nothing") {
		t.Errorf("%v", err)
	}
}
