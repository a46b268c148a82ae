// Command inside is an image's only program: it says as whom and how it runs.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	dir, err := os.Getwd()
	fmt.Printf("uid=%d gid=%d dir=%s GREETING=%s args=%s err=%v\n", os.Getuid(), os.Getgid(), dir, os.Getenv("GREETING"), strings.Join(os.Args[1:], ","), err)
	if len(os.Args) > 1 && os.Args[1] == "stay" {
		time.Sleep(time.Hour)
	}
}
