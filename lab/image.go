package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
)

// BuildImage builds the Dockerfile in dir on one host's engine, pushes it to the lab's registry and returns the
// reference under which every host can pull it: REGISTRY/TAG. The machine itself has no engine, and no public
// registry may be in reach, so FROM scratch with a static binary is the usual content.
func (l *Lab) BuildImage(ctx context.Context, host, dir, tag string) (string, error) {
	ref := l.Registry() + "/" + tag
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("build image %s: %w", tag, err)
	}
	// The classic builder runs in the engine alone; BuildKit would want a plug-in on the client's side.
	if err := l.docker(ctx, host, []string{"DOCKER_BUILDKIT=0"}, "build", "--quiet", "--tag", ref, dir); err != nil {
		return "", fmt.Errorf("build image %s: %w", tag, err)
	}
	if err := l.docker(ctx, host, nil, "push", "--quiet", ref); err != nil {
		return "", fmt.Errorf("push image %s: %w", tag, err)
	}
	return ref, nil
}

// Preload pulls an image on every host that is on, all at once.
func (l *Lab) Preload(ctx context.Context, ref string) error {
	hosts, err := l.Hosts()
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range hosts {
		if h.On {
			g.Go(func() error {
				if err := l.docker(gctx, h.Name, nil, "pull", "--quiet", ref); err != nil {
					return fmt.Errorf("pull %s on %s: %w", ref, h.Name, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// docker runs the docker client on the machine against a host's engine.
func (l *Lab) docker(ctx context.Context, host string, env []string, args ...string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	path, err := lookTool("docker")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--host", "unix://" + h.EngineSocket}, args...)...)
	cmd.Env = append(append(baseEnv(), "DOCKER_CONFIG="+l.path(h.Name, "client")), env...)
	cmd.Dir = os.TempDir()
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &complaint, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(complaint.String()))
	}
	return nil
}
