package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"isle/test/lab"
)

// answer listens on 127.0.0.1 until the script ends, as something real behind a
// connection would, and puts the port into a variable: answer VAR. Each line gets
// "real: LINE" as its answer.
func answer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: answer VAR")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					if _, err := fmt.Fprintf(c, "real: %s\n", s.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// realPostgres starts a PostgreSQL that ends with the script: postgres VAR CAFILE
// SQLFILE puts its port into a variable and its authority into a file, and runs
// the SQL as the superuser.
func realPostgres(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: postgres VAR CAFILE SQLFILE")
	}
	pg, err := lab.StartPostgres()
	ts.Check(err)
	ts.Defer(pg.Close)
	ts.Setenv(args[0], strconv.Itoa(pg.Port))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(pg.CA), 0o600))
	_, err = pg.Exec("postgres", ts.ReadFile(args[2]))
	ts.Check(err)
}
