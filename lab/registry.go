package lab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"time"
)

const registryTimeout = 30 * time.Second

// startRegistry runs Debian's docker-registry on the switch's own address, with its storage in the lab's
// directory. It stands in the switch's namespace: no firewall of the machine is between it and the hosts, and
// its port is free whatever else the machine runs.
func (l *Lab) startRegistry(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, registryTimeout, fmt.Errorf("no answer after %s", registryTimeout))
	defer cancel()
	config := fmt.Sprintf(`version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: %q
  delete:
    enabled: true
http:
  addr: %s
`, l.path("registry"), l.Registry())
	if err := os.WriteFile(l.path("registry.yml"), []byte(config), 0o644); err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	log, err := os.OpenFile(l.path(registryLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	defer log.Close()
	nsenter, err := lookTool("nsenter")
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	cmd := exec.Command(nsenter, "--net=/run/netns/"+l.fabric().space, "docker-registry", "serve", l.path("registry.yml"))
	cmd.Dir = "/"
	cmd.Env = l.environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = detachedAttr()
	keepDescriptors()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	p, err := identify(cmd.Process.Pid)
	l.reap(cmd)
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	if err := l.update(ctx, func(r *record) error { r.Registry = p; return nil }); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return until(ctx, 25*time.Millisecond, func() (bool, error) {
		if !p.alive() {
			return false, fmt.Errorf("registry has ended; the end of %s:\n%s", l.path(registryLog), tail(l.path(registryLog), 10))
		}
		return ping(ctx, client, "http://"+l.Registry()+"/v2/") == nil, nil
	}, func() error {
		return fmt.Errorf("registry at %s does not answer; the end of %s:\n%s", l.Registry(), l.path(registryLog), tail(l.path(registryLog), 10))
	})
}
