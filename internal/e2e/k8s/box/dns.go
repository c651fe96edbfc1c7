package box

import (
	"context"
	"net"
	"strings"

	"github.com/miekg/dns"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// serveDNS answers for NAME.NAMESPACE.svc.cluster.local with the addresses of the
// service's pods. There is no other zone.
func (b *Box) serveDNS(ctx context.Context) error {
	udp, err := net.ListenPacket("udp", dnsIP+":53")
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", dnsIP+":53")
	if err != nil {
		return err
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(b.answer(ctx, q)) })
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: answer}, {Listener: tcp, Handler: answer}} {
		go s.ActivateAndServe() // until the box ends
	}
	return nil
}

func (b *Box) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(q)
	r.Authoritative = true
	if len(q.Question) != 1 {
		r.Rcode = dns.RcodeFormatError
		return r
	}
	name, ours := strings.CutSuffix(strings.ToLower(q.Question[0].Name), ".svc.cluster.local.")
	service, namespace, two := strings.Cut(name, ".")
	if !ours || !two || strings.Contains(namespace, ".") {
		r.Rcode = dns.RcodeNameError
		return r
	}
	slices, err := b.Client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	switch {
	case err != nil:
		r.Rcode = dns.RcodeServerFailure
	case len(slices.Items) == 0:
		r.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		for _, s := range slices.Items {
			for _, e := range s.Endpoints {
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}
					r.Answer = append(r.Answer, &dns.A{Hdr: head, A: net.ParseIP(e.Addresses[0])})
				}
			}
		}
	}
	return r
}
