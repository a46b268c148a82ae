package airlock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"isle"
	"isle/internal/environment"
	"isle/internal/spec"
)

var ordersDB = environment.ConnectionDoor{Name: "orders-db", Kind: "postgres", Stage: "testing", Ports: []int{5432}}

// greeter says on each connection whose it is, then sends back what comes, and
// why it ends.
func greeter(ctx context.Context, instance isle.ID, name string, port int, conn net.Conn) error {
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s %d\n", instance, name, port)
	stop := context.AfterFunc(ctx, func() {
		fmt.Fprintf(conn, "over: %v\n", context.Cause(ctx))
		conn.Close()
	})
	defer stop()
	io.Copy(conn, conn)
	return nil
}

// ask dials a name and port from inside and returns the connection and its first
// line.
func (h *house) ask(ns, name string, port int) (c net.Conn, lines *bufio.Reader, first string) {
	h.t.Helper()
	inside(h.t, ns, func() error {
		a, err := addressOf(name)
		if err != nil {
			return err
		}
		c, err = dialer.Dial("tcp4", hostPort(a, port))
		return err
	})
	c.SetDeadline(time.Now().Add(10 * time.Second))
	lines = bufio.NewReader(c)
	first, err := lines.ReadString('\n')
	if err != nil {
		h.t.Fatal(err)
	}
	return c, lines, first
}

func TestAConnectionIsFoundByNameAndTheGatewayIsToldWhoComes(t *testing.T) {
	h := newHouse(t)
	h.connect = greeter
	grants := environment.Grants{Egress: []spec.Egress{h.granted("api.example.com")}, Connections: []environment.ConnectionDoor{
		ordersDB, {Name: "queue", Kind: "tcp", Stage: "testing", Ports: []int{7000, 7001}},
	}}
	var ids [2]isle.ID
	var nss [2]string
	for i := range ids {
		ids[i] = isle.NewID()
		ns, err := h.Open(context.Background(), ids[i], grants)
		if err != nil {
			t.Fatal(err)
		}
		nss[i] = ns
	}
	for i, ns := range nss {
		for name, port := range map[string]int{"orders-db": 5432, "queue": 7001} {
			c, _, first := h.ask(ns, name, port)
			defer c.Close()
			if want := fmt.Sprintf("%s %s %d\n", ids[i], name, port); first != want {
				t.Errorf("%q, want %q", first, want)
			}
		}
	}
	d := h.door(ids[0], "orders-db", "postgres", "open")
	if d.Kind != environment.KindConnection || d.Stage != "testing" || d.Count != 1 || d.Active != 1 || d.Reason != "granted by uses" {
		t.Errorf("%+v", d)
	}
	h.door(ids[0], "queue", "tcp", "open") // two ports, one door
	n := 0
	for _, d := range h.Doors(ids[0]) {
		if d.State == "open" {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d doors: %+v", n, h.Doors(ids[0]))
	}
	inside(t, nss[0], func() error { // the name's other ports, and other names
		a, err := addressOf("orders-db")
		if err != nil {
			return err
		}
		if _, err := dialer.Dial("tcp4", hostPort(a, 5433)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("another port: %v", err)
		}
		r, err := lookup("udp", "orders-db.example.com", dns.TypeA)
		if err != nil || r.Rcode != dns.RcodeNameError {
			return fmt.Errorf("another name: %v %v", r, err)
		}
		return nil
	})
}

func TestAClosedDoorTellsWhyBeforeItsConnectionsEnd(t *testing.T) {
	h := newHouse(t)
	h.connect = greeter
	id := isle.NewID()
	both := environment.Grants{Connections: []environment.ConnectionDoor{ordersDB, {Name: "other-db", Kind: "postgres", Stage: "testing", Ports: []int{5432}}}}
	ns, err := h.Open(context.Background(), id, both)
	if err != nil {
		t.Fatal(err)
	}
	one, oneLines, _ := h.ask(ns, "orders-db", 5432)
	defer one.Close()
	two, twoLines, _ := h.ask(ns, "other-db", 5432)
	defer two.Close()
	if _, err := h.Open(context.Background(), id, environment.Grants{Connections: both.Connections[1:]}); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(oneLines)
	if err != nil || !strings.Contains(string(rest), "over: the door was closed") {
		t.Errorf("%q %v", rest, err)
	}
	fmt.Fprintln(two, "still here")
	if line, err := twoLines.ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("%q %v", line, err)
	}
	inside(t, ns, func() error {
		if a, err := addressOf("orders-db"); err == nil {
			return fmt.Errorf("the closed door's name is at %s", a)
		}
		return nil
	})
}

// What a stage's values put in the place of a connection is found by the name that
// programs know. Where that leads somewhere else, nobody stays at the one before.
func TestAConnectionIsFoundByAnotherNameAndFollowsIt(t *testing.T) {
	h := newHouse(t)
	h.connect = greeter
	id := isle.NewID()
	open := func(connection string) string {
		d := ordersDB
		d.Name, d.As = connection, "orders-db"
		ns, err := h.Open(context.Background(), id, environment.Grants{Connections: []environment.ConnectionDoor{d}})
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	ns := open("orders-db-staging")
	c, lines, first := h.ask(ns, "orders-db", 5432)
	defer c.Close()
	if first != fmt.Sprintf("%s orders-db-staging 5432\n", id) {
		t.Errorf("orders-db leads to %q", first)
	}
	inside(t, ns, func() error {
		if a, err := addressOf("orders-db-staging"); err == nil {
			return fmt.Errorf("it is found at %s by its own name too", a)
		}
		return nil
	})
	if d := h.Doors(id); len(d) == 0 || d[0].Destination != "orders-db-staging" {
		t.Errorf("%+v", d)
	}
	open("orders-db-production")
	if rest, err := io.ReadAll(lines); err != nil || !strings.Contains(string(rest), "over: the door was closed") {
		t.Errorf("%q %v", rest, err)
	}
	again, _, first := h.ask(ns, "orders-db", 5432)
	defer again.Close()
	if first != fmt.Sprintf("%s orders-db-production 5432\n", id) {
		t.Errorf("orders-db leads to %q", first)
	}
}

// A gateway that does not end on its own loses the connection, and an airlock
// that closes waits for nobody inside.
func TestWhoeverServesAClosedDoorIsCutOff(t *testing.T) {
	h := newHouse(t)
	over := make(chan error, 1)
	h.connect = func(_ context.Context, _ isle.ID, _ string, _ int, conn net.Conn) error {
		fmt.Fprintln(conn, "hi")
		_, err := io.Copy(io.Discard, conn) // never looks at ctx
		over <- err
		return nil
	}
	id := isle.NewID()
	ns, err := h.Open(context.Background(), id, environment.Grants{Connections: []environment.ConnectionDoor{ordersDB}})
	if err != nil {
		t.Fatal(err)
	}
	c, _, _ := h.ask(ns, "orders-db", 5432)
	defer c.Close()
	if _, err := h.Open(context.Background(), id, environment.Grants{}); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err == nil {
		t.Error("the client seems to have left by itself")
	}
}

func TestASuccessorServesTheDoorsThatItInherits(t *testing.T) {
	h := newHouse(t)
	h.connect = greeter
	id := isle.NewID()
	grants := environment.Grants{Connections: []environment.ConnectionDoor{ordersDB}}
	ns, err := h.Open(context.Background(), id, grants)
	if err != nil {
		t.Fatal(err)
	}
	files, err := h.Export()
	if err != nil {
		t.Fatal(err)
	}
	h.Stop()
	var address string
	p, err := newPlan(grants)
	if err != nil {
		t.Fatal(err)
	}
	address = p.grants[0].address.String()
	var waiting net.Conn
	inside(t, ns, func() (err error) { // nobody serves, and the socket queues
		waiting, err = dialer.Dial("tcp4", address)
		return err
	})
	defer waiting.Close()
	c := h.config
	c.Inherited = files
	h.Airlocks = h.start(c)
	if _, err := h.Open(context.Background(), id, grants); err != nil {
		t.Fatal(err)
	}
	waiting.SetDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(waiting).ReadString('\n'); err != nil || line != fmt.Sprintf("%s orders-db 5432\n", id) {
		t.Errorf("%q %v", line, err)
	}
}

func TestWhatCannotBeFoundByNameIsNoDoor(t *testing.T) {
	api := []spec.Egress{{Host: "orders-db", Port: 443}}
	for name, g := range map[string]environment.Grants{
		"localhost":      {Connections: []environment.ConnectionDoor{{Name: "localhost", Kind: "tcp", Ports: []int{1}}}},
		"no name":        {Connections: []environment.ConnectionDoor{{Name: "Orders DB", Kind: "tcp", Ports: []int{1}}}},
		"a domain":       {Connections: []environment.ConnectionDoor{{Name: "a.example.com", Kind: "tcp", Ports: []int{1}}}},
		"no port":        {Connections: []environment.ConnectionDoor{{Name: "a", Kind: "tcp", Ports: []int{0}}}},
		"two meanings":   {Egress: api, Connections: []environment.ConnectionDoor{ordersDB}},
		"too many":       {Connections: make([]environment.ConnectionDoor, MaxGrants+1)},
		"no kind at all": {Connections: []environment.ConnectionDoor{{Name: "a", Ports: []int{1}}}},
	} {
		if _, err := newPlan(g); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
