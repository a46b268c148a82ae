package postgres

import "testing"

func TestARefusalNamesIsleOnce(t *testing.T) {
	r := &refusal{State: stateCannot, Message: "isle: the server refused"}
	if r.Error() != "the server refused" {
		t.Errorf("on the terminal and in the log it is %q", r.Error())
	}
}
