// Command inside is a service that says which version of it answers.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	version := os.Getenv("VERSION")
	if version == "bad" {
		fmt.Println("this version does not start")
		os.Exit(1)
	}
	switch {
	case version == "deaf": // it runs, and nobody is answered
		time.Sleep(time.Hour)
	case strings.HasPrefix(version, "slow"):
		time.Sleep(2 * time.Second)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if d, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil {
			time.Sleep(time.Duration(d) * time.Millisecond)
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		switch { // a check of health asks otherwise
		case version == "ill" && r.Method == http.MethodPost:
			w.WriteHeader(http.StatusInternalServerError)
		case version == "mortal" && r.Method == http.MethodPost:
			os.Exit(1)
		}
		fmt.Fprintf(w, "%s %d\n", version, len(b))
	})
	// Which versions have written, one after the other: a data file is one writer's.
	http.HandleFunc("/data", func(w http.ResponseWriter, r *http.Request) {
		f, err := os.OpenFile("/data/log", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		if r.Method == http.MethodPost {
			fmt.Fprintln(f, version)
			if err := f.Sync(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		if _, err := f.Seek(0, io.SeekStart); err == nil {
			io.Copy(w, f)
		}
	})
	fmt.Println(http.ListenAndServe(":8080", nil))
	os.Exit(1)
}
