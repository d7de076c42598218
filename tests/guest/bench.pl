# HTTP for ./dev bench, with connections that stay open: / is a short page, /clock the guest's monotonic clock in seconds.
# perl bench.pl PORT. The PostgreSQL guest has Perl because Debian's PostgreSQL needs it.
use strict;
use warnings;
use IO::Handle;
use IO::Socket::INET;
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

my $page = "x" x 1024 . "\n";
my $server = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die "port $ARGV[0]: $@\n";
$SIG{CHLD} = "IGNORE";
while (my $client = $server->accept) {
    if (fork) {
        close $client;
        next;
    }
    close $server;
    setsockopt $client, IPPROTO_TCP, TCP_NODELAY, 1;
    $client->autoflush(1);
    local $/ = "\r\n\r\n";
    while (my $request = <$client>) {
        my $body = $request =~ m{^GET /clock } ? sprintf("%.9f\n", clock_gettime(CLOCK_MONOTONIC)) : $page;
        print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
    }
    exit 0;
}
