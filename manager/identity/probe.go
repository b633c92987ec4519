package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/miniswarm/miniswarm/cluster"
)

// Probe is whether an external CA answers.
type Probe struct {
	URL string
	// Err is why it does not; nil if it does.
	Err error
}

// ProbeExternal looks whether the external CAs that sign for c at present answer this manager, all at once and for 5 s at most.
// Nothing is signed: one that answers may still refuse to, which [Authority.Configure] finds out with a trial.
func (a *Authority) ProbeExternal(ctx context.Context, c *cluster.Cluster) []Probe {
	rootPEM, _, _ := signing(c)
	urls := SigningURLs(c)
	if len(urls) == 0 {
		return nil
	}
	all := make([]Probe, len(urls))
	root, err := ParseRoot(rootPEM)
	var asking sync.WaitGroup
	for i, u := range urls {
		all[i] = Probe{URL: u, Err: err}
		if err == nil {
			asking.Go(func() { all[i].Err = a.probe(ctx, root, u) })
		}
	}
	asking.Wait()
	return all
}

// probe asks for the endpoint in a way that has it do nothing: any answer of its own will do, also that this is no way to ask.
func (a *Authority) probe(ctx context.Context, root *Root, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, target, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: a.externalTLS(root), DisableKeepAlives: true}, Timeout: externalTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		if failed.Timeout() {
			return fmt.Errorf("it has not answered within %s", externalTimeout)
		}
		return unreached(failed.Err) // the URL is named already
	} else if err != nil {
		return err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout: // a proxy's, of what is behind it
		return fmt.Errorf("it answers with %s", resp.Status)
	}
	return nil
}
