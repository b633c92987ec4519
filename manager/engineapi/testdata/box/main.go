// Command box is all that is in the image of the tests with a real engine.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	verb := "serve"
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	switch verb {
	case "echo":
		fmt.Println(strings.Join(os.Args[2:], " "))
	case "cat": // to the end of the input, which only a half-closed connection brings
		n, err := io.Copy(os.Stdout, os.Stdin)
		fmt.Fprintln(os.Stderr, "read", n, err)
	case "tty":
		mode := "no terminal"
		if st, err := os.Stdin.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			mode = "a terminal"
		}
		fmt.Println("this is", mode)
	case "fail":
		os.Exit(3)
	case "serve":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		fmt.Println("serving")
		select {
		case <-stop:
		case <-time.After(10 * time.Minute):
		}
	}
}
