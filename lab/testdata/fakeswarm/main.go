// Command fakeswarm keeps just enough of miniswarm's command line for the lab's own tests: a daemon that answers
// pings and remembers who joined whom, and the commands that form a cluster of such daemons.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fakeswarm:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	global := flag.NewFlagSet("fakeswarm", flag.ContinueOnError)
	host := global.String("host", os.Getenv("MINISWARM_HOST"), "daemon")
	if err := global.Parse(args); err != nil {
		return err
	}
	verb, args := global.Arg(0), global.Args()[1:]
	fs := flag.NewFlagSet(verb, flag.ContinueOnError)
	switch verb {
	case "daemon":
		return daemon(fs, args)
	case "init":
		addr := fs.String("advertise-addr", "", "")
		if err := fs.Parse(args); err != nil {
			return err
		}
		return ask(*host, "/init?addr="+*addr)
	case "token":
		return ask(*host, "/token?role="+args[len(args)-1])
	case "join":
		token := fs.String("token", "", "")
		if err := fs.Parse(args); err != nil {
			return err
		}
		return ask(*host, "/join?token="+url.QueryEscape(*token)+"&remote="+fs.Arg(0))
	}
	return fmt.Errorf("no command %q", verb)
}

func daemon(fs *flag.FlagSet, args []string) error {
	engine := fs.String("engine", "", "")
	socket := fs.String("socket", "", "")
	state := fs.String("state-dir", "", "")
	listen := fs.String("listen-addr", "", "")
	advertise := fs.String("advertise-addr", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if res, err := over(*engine).Get("http://engine/_ping"); err != nil {
		return fmt.Errorf("engine: %w", err)
	} else {
		res.Body.Close()
	}
	members := filepath.Join(*state, "members")
	remember := func(line string) error {
		f, err := os.OpenFile(members, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = fmt.Fprintln(f, line)
		return err
	}

	peers, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	go func() { // ends with the process, as everything here
		for {
			c, err := peers.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			answer := "refused\n"
			if role, addr, ok := strings.Cut(strings.TrimSpace(line), "@"); ok && remember(role+" "+addr) == nil {
				answer = "welcome\n"
			}
			_, _ = io.WriteString(c, answer)
			c.Close()
		}
	}()

	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, text string, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, text)
	}
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { reply(w, "OK", nil) })
	mux.HandleFunc("/init", func(w http.ResponseWriter, r *http.Request) {
		reply(w, "initialized", remember("manager "+r.FormValue("addr")))
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) { reply(w, r.FormValue("role"), nil) })
	mux.HandleFunc("/join", func(w http.ResponseWriter, r *http.Request) {
		c, err := net.Dial("tcp", r.FormValue("remote"))
		if err != nil {
			reply(w, "", err)
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "%s@%s\n", r.FormValue("token"), *advertise)
		if answer, _ := io.ReadAll(c); string(answer) != "welcome\n" {
			err = errors.New("refused")
		}
		reply(w, "joined", err)
	})
	_ = os.Remove(*socket)
	ln, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	return http.Serve(ln, mux)
}

func ask(host, path string) error {
	res, err := over(host).Get("http://daemon" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %v", path, body, err)
	}
	_, err = os.Stdout.Write(body)
	return err
}

func over(host string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", strings.TrimPrefix(host, "unix://"))
	}}}
}
