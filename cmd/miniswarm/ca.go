package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	dockerswarm "github.com/docker/cli/cli/command/swarm"
	"github.com/docker/cli/cli/command/swarm/progress"
	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/jsonmessage"
	"github.com/urfave/cli/v2"
)

func caCommand(e *env) *cli.Command {
	return &cli.Command{Name: "ca", Usage: "show or rotate the root certificate by which the cluster's machines know each other", Category: clusterCategory,
		Description: "   miniswarm ca > root.pem\n   miniswarm ca --rotate\n   miniswarm ca --rotate --ca-cert root.pem --ca-key root.key\n" +
			"   miniswarm ca --rotate --ca-cert root.pem --external-ca protocol=cfssl,url=https://ca.example.com:8888/sign",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "rotate", Usage: "change over to another root, a new one unless --ca-cert names it; no container is touched, join tokens change"},
			&cli.StringFlag{Name: "ca-cert", Usage: "`FILE` with the root certificate to change over to, in PEM"},
			&cli.StringFlag{Name: "ca-key", Usage: "`FILE` with its key, in PEM"},
			&cli.DurationFlag{Name: "cert-expiry", DefaultText: "as it is", Usage: "validity of node certificates"},
			&cli.StringSliceFlag{Name: "external-ca", Usage: "`SPEC` of who signs in place of the managers: protocol=cfssl,url=https://..."},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not wait until every machine has changed over"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("miniswarm ca takes no arguments")
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			return hint(runCA(c.Context, e, c, cl), c)
		}}
}

func runCA(ctx context.Context, e *env, c *cli.Context, cl *client.Client) error {
	if !c.Bool("rotate") {
		for _, f := range []string{"ca-cert", "ca-key", "cert-expiry", "external-ca"} {
			if c.IsSet(f) {
				return usage("--%s goes with --rotate only; 'miniswarm update' changes settings of the present root", f)
			}
		}
		return showRoot(ctx, e, cl)
	}
	sw, err := cl.SwarmInspect(ctx)
	if err != nil {
		return err
	}
	if err := rotateTo(c, &sw.Spec.CAConfig); err != nil {
		return err
	}
	if err := cl.SwarmUpdate(ctx, sw.Version, sw.Spec, swarm.UpdateFlags{}); err != nil {
		return err
	}
	if c.Bool("detach") {
		return nil
	}
	err = awaitRotation(ctx, e, cl, c.Bool("quiet"))
	if ctx.Err() != nil {
		fmt.Fprintln(e.stderr, "Interrupted. The rotation goes on: 'miniswarm node ls --format \"{{.Hostname}} {{.TLSStatus}}\"' shows it.")
		return context.Canceled
	}
	if err != nil || c.Bool("quiet") {
		return err
	}
	return showRoot(ctx, e, cl)
}

// rotateTo has a CAConfig ask for the root that the flags describe.
func rotateTo(c *cli.Context, to *swarm.CAConfig) error {
	cert, err := readPEM(c.String("ca-cert"))
	if err != nil {
		return err
	}
	key, err := readPEM(c.String("ca-key"))
	if err != nil {
		return err
	}
	external, err := externalCAs(c, cert)
	if err != nil {
		return err
	}
	switch {
	case len(external) > 0 && cert == "":
		return usage("--external-ca needs --ca-cert, the root certificate for which it signs")
	case cert != "" && key == "" && len(external) == 0:
		return usage("--ca-cert needs --ca-key, or --external-ca that has the key")
	}
	if c.IsSet("cert-expiry") {
		to.NodeCertExpiry = c.Duration("cert-expiry")
	}
	if c.IsSet("external-ca") {
		to.ExternalCAs = external
	}
	to.SigningCACert, to.SigningCAKey = cert, key
	if cert == "" && key == "" {
		to.ForceRotate++
	}
	return nil
}

// externalCAs reads the flags that describe external CAs, which sign for the root certificate cert unless they name another.
func externalCAs(c *cli.Context, cert string) ([]*swarm.ExternalCA, error) {
	var all dockerswarm.ExternalCAOption
	for _, spec := range joinSpecs(c.StringSlice("external-ca")) {
		if spec == "" {
			continue // no external CA any more
		}
		if err := all.Set(spec); err != nil {
			return nil, usage("--external-ca %s: %v", spec, err)
		}
	}
	for _, ca := range all.Value() {
		ca.CACert = cmp.Or(ca.CACert, cert)
	}
	return all.Value(), nil
}

// foundWith has a new cluster change over at once to the root that its external CAs sign for.
func foundWith(c *cli.Context, to *swarm.CAConfig) error {
	external, err := externalCAs(c, "")
	if err != nil {
		return err
	}
	for _, ca := range external {
		if ca.CACert == "" || ca.CACert != external[0].CACert {
			return usage("--external-ca needs cacert=FILE, the root certificate for which it signs, the same for each: a new cluster has no other")
		}
		to.SigningCACert = ca.CACert
	}
	to.ExternalCAs = external
	return nil
}

// joinSpecs puts the specs of external CAs together again, which the command line's parser takes apart at commas: each begins
// with a key of its own that is there already.
func joinSpecs(parts []string) (specs []string) {
	seen := map[string]bool{}
	for _, part := range parts {
		key, _, _ := strings.Cut(part, "=")
		if len(specs) == 0 || seen[key] {
			specs, seen = append(specs, part), map[string]bool{key: true}
			continue
		}
		seen[key] = true
		specs[len(specs)-1] += "," + part
	}
	return specs
}

// readPEM reads a file that must hold PEM; no name is no text.
func readPEM(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if block, _ := pem.Decode(text); block == nil {
		return "", fmt.Errorf("%s: file contents must be in PEM format", path)
	}
	return string(text), nil
}

// showRoot prints the root certificate as Docker does, and until when it is valid where it is in nobody's way.
func showRoot(ctx context.Context, e *env, cl *client.Client) error {
	sw, err := cl.SwarmInspect(ctx)
	if err != nil {
		return err
	}
	text := strings.TrimSpace(sw.TLSInfo.TrustRoot)
	if text == "" {
		return errors.New("the swarm shows no root CA")
	}
	fmt.Fprintln(e.stdout, text)
	if block, _ := pem.Decode([]byte(text)); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			fmt.Fprintf(e.stderr, "Valid until %s (%d days).\n", cert.NotAfter.UTC().Format(time.DateOnly), int(time.Until(cert.NotAfter).Hours()/24))
		}
	}
	if sw.RootRotationInProgress {
		fmt.Fprintln(e.stderr, "A rotation to another root is in progress.")
	}
	return nil
}

// awaitRotation waits, as Docker's command does, until every machine has a certificate of the new root and trusts it.
func awaitRotation(ctx context.Context, e *env, cl *client.Client, quiet bool) error {
	reader, writer := io.Pipe()
	out := streams.NewOut(e.stdout)
	var shown sync.WaitGroup
	shown.Go(func() {
		switch {
		case quiet:
		case out.IsTerminal():
			_ = jsonmessage.DisplayJSONMessagesToStream(reader, out, nil)
		default:
			printRotation(e.stdout, reader)
		}
		_, _ = io.Copy(io.Discard, reader) // whatever was not shown: nobody must wait for a reader
	})
	defer shown.Wait()
	watch := &rotationWatch{APIClient: cl, out: writer, now: time.Now}
	return progress.RootRotationProgress(ctx, watch, rotationWriter{watch}) // which closes the pipe
}

// printRotation prints what Docker's progress says, a line for each change.
func printRotation(w io.Writer, r io.Reader) {
	last := make(map[string]string)
	dec := json.NewDecoder(r)
	for {
		var m jsonmessage.JSONMessage
		if dec.Decode(&m) != nil {
			return
		}
		what, said := strings.TrimSpace(m.ID), strings.TrimSpace(m.Status)
		if m.Progress != nil && m.Progress.Total > 0 {
			said = fmt.Sprintf("%d/%d nodes", m.Progress.Current, m.Progress.Total)
		}
		if said != "" && last[what] != said {
			last[what] = said
			fmt.Fprintf(w, "%s: %s\n", what, said)
		}
	}
}
