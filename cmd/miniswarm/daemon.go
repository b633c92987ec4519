package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/node"
)

const (
	defaultStateDir = "/var/lib/miniswarm"
	defaultRunDir   = "/run/miniswarm"
	defaultEngine   = "unix:///var/run/docker.sock"
	flagLogFile     = "log-file"
	// startTimeout bounds the wait for a daemon that init or join started.
	startTimeout = 10 * time.Second
)

func daemonCommand(e *env) *cli.Command {
	return &cli.Command{Name: "daemon", Usage: "run this machine's node in the foreground", Category: machineCategory,
		Description: "   miniswarm daemon\n   miniswarm daemon --engine unix:///run/engine2.sock --socket /run/node2.sock --state-dir /var/lib/node2 --listen-addr 10.0.0.1:2378\n\n" +
			"init and join start it by themselves: as a systemd unit where systemd runs, detached otherwise.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "engine", EnvVars: []string{"MINISWARM_ENGINE"}, Value: defaultEngine, Usage: "the local Docker Engine"},
			&cli.StringFlag{Name: "socket", EnvVars: []string{"MINISWARM_SOCKET"}, Value: strings.TrimPrefix(defaultHost, "unix://"), Usage: "`PATH` of the socket to serve the Engine API on"},
			&cli.StringFlag{Name: "state-dir", EnvVars: []string{"MINISWARM_STATE_DIR"}, Value: defaultStateDir, Usage: "`DIRECTORY` of everything kept on disk"},
			&cli.StringFlag{Name: "run-dir", EnvVars: []string{"MINISWARM_RUN_DIR"}, Value: defaultRunDir, Usage: "`DIRECTORY` in which a tmpfs for secrets and configs of containers is mounted"},
			&cli.StringFlag{Name: "listen-addr", EnvVars: []string{"MINISWARM_LISTEN_ADDR"}, Usage: "`ADDRESS` of the cluster port unless init or join name one (default 0.0.0.0:2377)"},
			&cli.StringFlag{Name: "advertise-addr", EnvVars: []string{"MINISWARM_ADVERTISE_ADDR"}, Usage: "`ADDRESS` for other machines unless init or join name one; another one than at the last start moves the node there"},
			&cli.StringFlag{Name: "data-path-addr", EnvVars: []string{"MINISWARM_DATA_PATH_ADDR"}, Usage: "`ADDRESS` for traffic between containers unless init or join name one"},
			&cli.StringSliceFlag{Name: "manager-addr", EnvVars: []string{"MINISWARM_MANAGER_ADDR"}, Usage: "`ADDRESS` at which to look for a manager, beside those that the node remembers: for a cluster all of whose addresses have changed"},
			&cli.BoolFlag{Name: "no-data-plane", EnvVars: []string{"MINISWARM_NO_DATA_PLANE"}, Usage: "leave the kernel alone: no published ports, no overlay networks"},
			&cli.StringFlag{Name: "log-level", EnvVars: []string{"MINISWARM_LOG_LEVEL"}, Value: "info", Usage: "debug, info, warn or error"},
			&cli.StringFlag{Name: "log-format", EnvVars: []string{"MINISWARM_LOG_FORMAT"}, Value: "text", Usage: "text or json"},
		},
		Action: func(c *cli.Context) error {
			logger, err := newLogger(e, c.String("log-level"), c.String("log-format"))
			if err != nil {
				return err
			}
			n, err := node.New(node.Config{StateDir: c.String("state-dir"), RunDir: c.String("run-dir"), Socket: strings.TrimPrefix(c.String("socket"), "unix://"), Engine: c.String("engine"),
				ListenAddr: c.String("listen-addr"), AdvertiseAddr: c.String("advertise-addr"), DataPathAddr: c.String("data-path-addr"),
				ManagerAddrs: c.StringSlice("manager-addr"),
				DataPlane:    !c.Bool("no-data-plane"), Version: version, Logger: logger})
			if err != nil {
				return err
			}
			return n.Run(c.Context)
		}}
}

func newLogger(e *env, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usage("invalid --log-level %q: debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(e.stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(e.stderr, opts)), nil
	}
	return nil, usage("invalid --log-format %q: text or json", format)
}

// connectOrStart gives a client of the daemon and starts one first where none answers and the command line names the
// default socket; another socket's daemon was started by somebody who chose its flags.
func connectOrStart(ctx context.Context, e *env, c *cli.Context) (*client.Client, error) {
	cl, err := newClient(c)
	if err != nil {
		return nil, err
	}
	if _, err := cl.Ping(ctx); err == nil || !client.IsErrConnectionFailed(err) {
		return cl, nil
	} else if c.String(flagHost) != defaultHost {
		cl.Close()
		return nil, hint(err, c)
	}
	how, err := startDaemon(ctx, e, c.String(flagLogFile))
	if err != nil {
		cl.Close()
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	deadline, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err = cl.Ping(deadline); err == nil {
			fmt.Fprintln(e.stderr, how)
			return cl, nil
		}
		select {
		case <-deadline.Done():
			cl.Close()
			return nil, fmt.Errorf("the daemon was started (%s) but does not answer: %w", how, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const unitPath = "/etc/systemd/system/miniswarm.service"

// unit restarts the daemon when it fails; KillMode=process because containers are not its children to end. It may take its
// time to stop: a container that an engine is slow to create must not be given up halfway (two minutes, at the most).
const unit = `[Unit]
Description=miniswarm node
After=network-online.target docker.service
Wants=network-online.target

[Service]
ExecStart=%s daemon
Restart=always
RestartSec=1
TimeoutStopSec=150
KillMode=process
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
`

// unitText is the unit that runs a binary, whatever the directories above it are called.
func unitText(executable string) []byte {
	return fmt.Appendf(nil, unit, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(executable)+`"`)
}

// startDaemon starts this machine's daemon and says how.
func startDaemon(ctx context.Context, e *env, logPath string) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("this needs root: run the command with sudo, or start 'miniswarm daemon' yourself")
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		if err := os.WriteFile(unitPath, unitText(e.executable), 0o644); err != nil {
			return "", fmt.Errorf("write the systemd unit: %w", err)
		}
		for _, args := range [][]string{{"daemon-reload"}, {"enable", "--now", "miniswarm.service"}} {
			if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
				return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
			}
		}
		return "Started the daemon as systemd unit miniswarm.service (" + unitPath + ").", nil
	}
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return "", fmt.Errorf("open the log file: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(e.executable, "daemon") // outlives this command, hence no context
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	pid := cmd.Process.Pid
	if err := cmd.Process.Release(); err != nil {
		return "", err
	}
	return fmt.Sprintf("Started the daemon (pid %d, log %s).", pid, logPath), nil
}
